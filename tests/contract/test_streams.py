"""The standard streams: a closed, full or narrow one gives one line or a replaced character, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cases import each

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command in which `$PY` is this Python and `$RUN` runs code after `guard_streams`."""
    run = (
        "import sys; from adaptive_lm.contract.streams import guard_streams, read_stdin\n"
        "from adaptive_lm.contract.errors import UserError\n"
        "import click\n"
        "try:\n guard_streams(); exec(sys.argv[1]); sys.stdout.flush()\n"
        "except UserError as error:\n click.echo(f'error: {error}', err=True); sys.exit(1)"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, env={**buffered, "PY": sys.executable, "RUN": run, **environment}
    )


@pytest.mark.parametrize("write", ["print('text')", "click.echo('text')", "from rich import print as p; p('text')"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
@needs_full
def test_a_full_stdout_is_one_line_and_no_traceback_at_exit(write: str, unbuffered: str) -> None:
    done = shell(f'"$PY" -c "$RUN" "{write}" > /dev/full', PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: cannot write to stdout: No space left on device")
    assert done.stderr.count(b"\n") == 1


def test_a_closed_stdout_fails_before_any_work() -> None:
    done = shell('"$PY" -c "$RUN" "open(\'worked\', \'w\')" >&-')
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: cannot write to stdout: it is closed")
    assert done.stderr.count(b"\n") == 1
    assert not Path("worked").exists()


@pytest.mark.parametrize("stderr", ["2>&-", pytest.param("2>/dev/full", marks=needs_full)])
@pytest.mark.parametrize("write", ["click.echo('note', err=True)", "print('note', file=sys.stderr)"])
def test_a_stderr_that_cannot_be_written_does_not_stop_the_result(stderr: str, write: str) -> None:
    done = shell(f'"$PY" -c "$RUN" "{write}; print(1)" {stderr}')
    assert (done.returncode, done.stdout) == (0, b"1\n")


def test_a_closed_stdin_is_one_line() -> None:
    done = shell('"$PY" -c "$RUN" "read_stdin()" <&-')
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: stdin is closed")
    assert done.stderr.count(b"\n") == 1


def test_a_stdin_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    done = shell(f'"$PY" -c "$RUN" "read_stdin()" 0> "{tmp_path / "only-written"}"')
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: cannot read stdin: Bad file descriptor")
    assert done.stderr.count(b"\n") == 1


def test_a_file_that_is_opened_later_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = f"print(open('{tmp_path / 'a'}', 'w').fileno() > 2)"
    assert shell(f'"$PY" -c "$RUN" "{code}" <&- 2>&-').stdout == b"True\n"


@each(
    ("encoding", "expected"),
    [
        ("ascii", b"a - b ... -> ? ?\n"),
        ("latin-1", b"a \xb7 b ... -> \xe9 ?\n"),
        ("utf-8", "a · b … → é 冬\n".encode()),
    ],
)
@each("stream", ["", ", file=sys.stderr", "click", "click err"])
def test_a_character_that_the_encoding_lacks_is_replaced(encoding: str, expected: bytes, stream: str) -> None:
    text = "'a · b … → é 冬'"
    code = f"click.echo({text}, err={stream == 'click err'})" if "click" in stream else f"print({text}{stream})"
    done = shell(f'"$PY" -c "$RUN" "{code}"', PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr if "err" in stream else done.stdout) == (0, expected)


def test_half_a_surrogate_pair_is_replaced_in_utf_8_too() -> None:
    assert shell('"$PY" -c "$RUN" "print(chr(0xdcff))"', PYTHONIOENCODING="utf-8").stdout == b"?\n"


def test_a_closed_pipe_ends_quietly() -> None:
    done = shell('"$PY" -m adaptive_lm.serve train --help | true; exit ${PIPESTATUS[0]}')
    assert done.stderr == b""
    assert done.returncode in (0, 1)  # the reader may be gone before or after the whole text is in the pipe


@pytest.mark.parametrize("arguments", ["--help", "--version", "bench --help", "train --print-config"])
@needs_full
def test_every_command_reports_a_full_stdout(arguments: str) -> None:
    done = shell(f'"$PY" -m adaptive_lm.serve {arguments} > /dev/full')
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: cannot write to stdout: No space left on device")
    assert done.stderr.count(b"\n") == 1
