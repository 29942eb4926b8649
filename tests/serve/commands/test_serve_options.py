"""Options of `adaptive serve` and what is refused before anything is loaded."""

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import group
from adaptive_lm.serve.commands.values import parse_bytes, read_keys


def refused(*options: str) -> str:
    result = CliRunner().invoke(group, ["serve", *options])
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    return result.output


def test_a_port_in_use_is_reported_with_the_next_one(folder: Path) -> None:
    """S44."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = refused("--model", str(folder / "runs" / "demo"), "--port", str(port))
    assert f"error: port {port} at 127.0.0.1 is in use, expected a free one" in message
    assert f"type: --port {port + 1}" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "none"), "no exported model at none"),
        (("--host", "192.0.2.1"), "found --host 192.0.2.1, which is no address of this machine"),
        (("--host", "no.such.host.invalid"), "found --host no.such.host.invalid, expected an address"),
        (("--api-key-file", "none.txt"), "the key file none.txt cannot be read: No such file"),
        (("--kv-memory", "much"), "found 'much', expected a size above 0 such as 512M or 4G"),
        (("--kv-memory", "0"), "found '0', expected a size above 0"),
        (("--auto-compute", "0"), "0 is not in the range"),
        (("--target-ms-per-token", "5"), "found --target-ms-per-token without --auto-compute"),
        (("--port", "70000"), "70000 is not in the range"),
    ],
)
def test_wrong_options_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S44."""
    monkeypatch.chdir(tmp_path)
    assert message in refused("--port", "0", *options)


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("512M", 2**29), ("1.5 GiB", 3 * 2**29), ("4k", 4096), ("2TB", 2**41)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_keys_have_the_name_before_them_or_that_of_their_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nalice  sk-alice-1\n\nsk-nameless # of the page\n")
    assert read_keys(file) == (("alice", "sk-alice-1"), ("line-4", "sk-nameless"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no key"),
        ("alice short", "line 1 of the key file .* is no key"),
        ("alice sk-secret-1 more", "is no key"),
        ("alice sk-sécret-1", "is no key"),
        ("alice sk-secret-1\nalice sk-secret-2", "line 2 .* repeats a name or a key"),
        ("alice sk-secret-1\nbob sk-secret-1", "line 2 .* repeats a name or a key"),
    ],
)
def test_a_file_without_proper_keys_is_refused_and_no_key_is_shown(content: str, message: str, tmp_path: Path) -> None:
    """S39."""
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_keys(file)
    assert "secret" not in str(caught.value)


def test_a_file_of_keys_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="it is not text in UTF-8"):
        read_keys(file)
