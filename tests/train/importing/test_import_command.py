"""`adaptive import`: the run that it writes, what it prints, and what it leaves after an error."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from support.foreign.folders import LENGTH, random_ids, write_folder

from adaptive_lm.contract.generation_settings import GenerationSettings
from adaptive_lm.contract.text.file import read_text
from adaptive_lm.serve.cli import group
from adaptive_lm.train.importing.heldout import SECONDS, own_text
from adaptive_lm.train.importing.importer import read_foreign
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.checkpoints.tensor_file import LazyTensor, write_tensors

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("model")
    theirs = write_folder(folder, "qwen3_moe", dtype=torch.bfloat16)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder, theirs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Some held-out text.\n" * 20)
    return tmp_path


def adaptive(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=False)


def test_the_run_computes_what_the_model_computed(model: tuple[Path, Any], here: Path) -> None:
    folder, theirs = model
    result = adaptive("import", folder, "--name", "tiny", "--heldout", "text.txt")
    assert (result.exit_code, result.stdout) == (0, "runs/tiny\n")
    assert "3 layers of width 32, 6 experts, vocabulary 300, context 96" in result.stderr
    assert "next: adaptive export tiny --onnx" in result.stderr
    checkpoint = load_checkpoint(here / "runs" / "tiny")
    assert {value.dtype for name, value in checkpoint.model_state.items() if "controller" not in name} == {
        torch.bfloat16
    }
    ours = Transformer(checkpoint.config.model).eval()
    ours.load_state_dict(checkpoint.model_state)
    ids = random_ids(LENGTH)
    with torch.no_grad():
        expected, logits = theirs(ids, use_cache=False).logits, ours(ids).logits
    assert float((expected - logits).abs().max() / (expected.max() - expected.min())) < 1e-4


def test_the_run_has_the_files_that_export_and_chat_read(model: tuple[Path, Any], here: Path) -> None:
    adaptive("import", model[0], "--name", "tiny", "--heldout", "text.txt")
    run = here / "runs" / "tiny"
    assert (run / "heldout.txt").read_text() == (here / "text.txt").read_text()
    assert (run / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    assert (run / "tokenizer.json").read_text() == (model[0] / "tokenizer.json").read_text()
    settings = GenerationSettings.from_json((run / "generation.json").read_text(), "generation.json")
    assert (settings.eos_ids, settings.dialect) == ((256,), "huggingface")
    provenance = json.loads((run / "provenance.json").read_text())
    assert (provenance["family"], provenance["licence"], provenance["heldout"]) == ("qwen3_moe", "mit", "file")
    assert len(provenance["files"]["model.safetensors"]) == 64


def test_an_imported_run_is_listed_as_complete(model: tuple[Path, Any], here: Path) -> None:
    adaptive("import", model[0], "--name", "tiny", "--heldout", "text.txt")
    (listed,) = (json.loads(line) for line in adaptive("runs", "--json").stdout.splitlines())
    assert (listed["name"], listed["state"], listed["step"]) == ("tiny", "complete", 0)


def test_an_imported_run_has_no_training_to_resume(model: tuple[Path, Any], here: Path) -> None:
    adaptive("import", model[0], "--name", "tiny", "--heldout", "text.txt")
    result = adaptive("train", "--resume", "--name", "tiny", "--steps", "5", "--data", "text.txt")
    assert result.exit_code == 1
    assert "was imported, so it has no training to resume" in result.stderr
    assert "adaptive train --from tiny --data FILE" in result.stderr


def test_without_a_text_the_model_samples_its_own(model: tuple[Path, Any], here: Path) -> None:
    result = adaptive("import", model[0], "--name", "tiny")
    assert "samples of the model itself" in result.stderr
    assert json.loads((here / "runs" / "tiny" / "provenance.json").read_text())["heldout"] == "own"
    text = read_text(here / "runs" / "tiny" / "heldout.txt")  # as calibrate does: a zero byte would make it no text
    assert len(text) > 100


def test_the_samples_hold_no_special_token_and_are_the_same_each_time(model: tuple[Path, Any]) -> None:
    foreign = read_foreign(model[0], lambda _what, _done, _total: None)
    first, second = (own_text(foreign, lambda _line: None, seconds=0) for _ in range(2))
    assert first == second
    assert "<|im_end|>" not in first.text
    assert SECONDS < 10


def test_a_large_model_takes_the_built_in_text(model: tuple[Path, Any]) -> None:
    foreign = read_foreign(model[0], lambda _what, _done, _total: None)
    lines: list[str] = []
    text = own_text(foreign, lines.append, largest=1000)
    assert (text.origin, "too large to sample from" in lines[0]) == ("built-in", True)
    assert "Pablo Picasso" in text.text


def test_the_context_can_be_capped(model: tuple[Path, Any], here: Path) -> None:
    adaptive("import", model[0], "--name", "tiny", "--heldout", "text.txt", "--context", "32")
    assert load_checkpoint(here / "runs" / "tiny").config.model.context_length == 32
    longer = adaptive("import", model[0], "--name", "other", "--heldout", "text.txt", "--context", "1000")
    assert longer.exit_code == 1
    assert "longer than the context of this model, 96 tokens" in longer.stderr


def test_learned_positions_are_capped_with_the_context(tmp_path: Path, here: Path) -> None:
    write_folder(tmp_path / "gpt2", "gpt2")
    adaptive("import", tmp_path / "gpt2", "--name", "tiny", "--heldout", "text.txt", "--context", "32")
    assert load_checkpoint(here / "runs" / "tiny").model_state["learned_positions"].shape == (32, 32)


def test_a_run_that_exists_is_replaced_only_when_asked(model: tuple[Path, Any], here: Path) -> None:
    adaptive("import", model[0], "--name", "tiny", "--heldout", "text.txt")
    (here / "runs" / "tiny" / "mark").touch()
    result = adaptive("import", model[0], "--name", "tiny")
    assert result.exit_code == 1
    assert "runs/tiny exists already; give the import another --name" in result.stderr
    assert (here / "runs" / "tiny" / "mark").exists()
    assert adaptive("import", model[0], "--name", "tiny", "--heldout", "text.txt", "--overwrite").exit_code == 0
    assert not (here / "runs" / "tiny" / "mark").exists()


def test_a_folder_that_is_no_run_is_not_replaced(model: tuple[Path, Any], here: Path) -> None:
    (here / "runs" / "tiny").mkdir(parents=True)
    (here / "runs" / "tiny" / "mine").touch()
    result = adaptive("import", model[0], "--name", "tiny", "--overwrite")
    assert "exists and is not a run, so it was left unchanged" in result.stderr
    assert (here / "runs" / "tiny" / "mine").exists()


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", ""])
def test_a_name_that_is_no_name_is_refused(name: str, model: tuple[Path, Any], here: Path) -> None:
    assert "expected letters, digits" in adaptive("import", model[0], "--name", name).stderr
    assert not (here / "runs").exists()


def test_a_model_that_cannot_be_read_leaves_nothing_behind(model: tuple[Path, Any], here: Path) -> None:
    broken = shutil.copytree(model[0], here / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-1])
    result = adaptive("import", broken, "--name", "tiny", "--heldout", "text.txt")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert not (here / "runs").exists()


def test_a_read_that_fails_while_the_run_is_written_leaves_nothing_behind(model: tuple[Path, Any], here: Path) -> None:
    """The file may be cut after its header was checked."""
    from adaptive_lm.contract.errors import UserError
    from adaptive_lm.train.importing.errors import ForeignFileError
    from adaptive_lm.train.importing.run_writer import Heldout, write_run
    from adaptive_lm.train.run.folder import named_run

    foreign = read_foreign(model[0], lambda _what, _done, _total: None)

    def fail() -> torch.Tensor:
        raise ForeignFileError("cut")

    last = foreign.tensors["norm.weight"]
    foreign = type(foreign)(
        **{**vars(foreign), "tensors": {**foreign.tensors, "norm.weight": LazyTensor(last.shape, last.dtype, fail)}}
    )
    with pytest.raises(UserError, match="cut"):
        write_run(foreign, named_run("tiny"), Heldout("x", "file"), work=lambda _what, _done, _total: None)
    assert list((here / "runs").iterdir()) == []


def test_tensors_are_read_one_at_a_time_as_they_are_written(tmp_path: Path) -> None:
    alive: list[int] = []

    def reader(number: int) -> LazyTensor:
        def read() -> torch.Tensor:
            alive.append(number)
            return torch.full((3,), float(number))

        return LazyTensor((3,), torch.float32, read)

    tensors = {f"t{number}": reader(number) for number in range(3)}
    assert alive == []
    written = write_tensors(tmp_path / "x.safetensors", tensors)
    assert alive == [0, 1, 2]
    assert written["bytes"] == (tmp_path / "x.safetensors").stat().st_size
    from safetensors.torch import load_file

    assert load_file(tmp_path / "x.safetensors")["t2"].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_an_imported_model_is_exported_and_generates(name: str, tmp_path: Path, here: Path) -> None:
    write_folder(tmp_path / "model", name)
    assert adaptive("import", tmp_path / "model", "--name", "tiny", "--heldout", "text.txt").exit_code == 0
    assert adaptive("export", "tiny", "--onnx", "--target", "portable").exit_code == 0
    result = adaptive("generate", "abc", "--model", "runs/tiny/model", "--max-new-tokens", "8", "--temperature", "0")
    assert result.exit_code == 0
