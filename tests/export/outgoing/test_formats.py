"""The formats of other programs begin alike: the same files of a run are read, and refused in the same words."""

import json
from pathlib import Path

import pytest
from support.runs import write_run

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.file_names import CHAT_TEMPLATE, GENERATION, TOKENIZER
from adaptive_lm.contract.generation_settings import GenerationSettings
from adaptive_lm.export.outgoing import hf
from adaptive_lm.export.outgoing.formats import Format, export_to
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer

DENSE = {"ffn": {"routing": "dense", "dim": 48}, "depth": {}}
NOT_UTF8 = b"\xff\xfe"


def larger_tokenizer() -> bytes:
    """Return a tokenizer with one id more than the model."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["one more"])
    return tokenizer.to_str().encode()


def without_end() -> bytes:
    """Return a tokenizer without the end of texts."""
    content = json.loads(byte_tokenizer().to_str())
    content["added_tokens"] = []
    content["model"]["vocab"].pop("<|endoftext|>", None)
    return json.dumps(content).encode()


@pytest.mark.parametrize("to", ["hf", "gguf"])
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (TOKENIZER, None, r"cannot read .*tokenizer\.json, a file of the run: .*; restore it or train again"),
        (TOKENIZER, NOT_UTF8, r"cannot read .*tokenizer\.json, a file of the run: .*utf-8"),
        (TOKENIZER, b'{"a": 1}', r"tokenizer\.json is damaged: .*; restore it or train again"),
        (TOKENIZER, larger_tokenizer(), r"has ids up to 257, the model's vocabulary holds 257; it is not this run's"),
        (TOKENIZER, without_end(), r"has no token <\|endoftext\|>, so it is not this run's tokenizer"),
        (GENERATION, NOT_UTF8, r"cannot read .*generation\.json, a file of the run"),
        (GENERATION, GenerationSettings(eos_ids=(999,)).to_json().encode(), "names the token 999, which .* not have"),
        (CHAT_TEMPLATE, NOT_UTF8, r"cannot read .*chat_template\.jinja, a file of the run"),
    ],
    ids=["missing", "not utf-8", "damaged", "larger", "without end", "ends not utf-8", "unknown end", "template"],
)
def test_a_damaged_file_of_the_run_is_refused_and_nothing_is_written(
    tmp_path: Path, to: Format, file: str, content: bytes | None, message: str
) -> None:
    run = write_run(tmp_path / "runs" / "tiny", tokenizer="bytes", **DENSE)
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        export_to(to, str(run), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("to", ["hf", "gguf", "peft"])
def test_a_run_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Format) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no run or checkpoint nowhere"):
        export_to(to, "nowhere", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "runs" / "tiny", tokenizer="bytes", **DENSE)

    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(hf, "write_tensors", full)
    with pytest.raises(
        UserError, match=r"cannot write .*: No space left on device\. Nothing was exported\. .* make room"
    ):
        export_to("hf", str(run), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
