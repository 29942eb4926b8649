"""The command `adaptive train`, as it is typed."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from adaptive_lm.serve.cli import group
from adaptive_lm.train.commands.actions import Begin, BeginOrResume, PrintConfig, Resume, TrainStages, resolve
from adaptive_lm.train.commands.request import Request
from adaptive_lm.train.commands.train import train
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint


@pytest.fixture
def recipe(tiny: dict[str, Any], folder: Path) -> str:
    """Write the tiny values as a recipe file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return "tiny.yaml"


def adaptive(*arguments: str) -> Result:
    return CliRunner().invoke(group, ["train", *arguments])


def test_training_prints_the_folder_on_stdout_and_its_log_on_stderr(recipe: str) -> None:
    done = adaptive(recipe, "--steps", "3", "--name", "s1")
    assert done.exit_code == 0, done.output
    assert done.stdout == "runs/s1\n"
    words = ("held-out loss", "perplexity", "bits per byte", "experts per token", "layers per token")
    assert all(word in done.stderr for word in words)
    assert done.stderr.endswith("next: adaptive export s1 --onnx\n")


def test_a_run_in_two_parts_is_trained_as_the_help_says(recipe: str) -> None:
    assert "--stop-at 100" in adaptive("--help").output
    first = adaptive(recipe, "--steps", "4", "--name", "b", "--stop-at", "2")
    assert first.exit_code == 0
    assert "saved at step 2; resume with: adaptive train --resume --name b\n" in first.stderr
    assert adaptive("--resume", "--name", "b").exit_code == 0
    assert load_checkpoint("runs/b").step == 4
    assert "complete at step 4" in adaptive("--resume").stderr  # without a name, the newest run


def test_flags_settings_and_recipe_are_combined(recipe: str) -> None:
    done = adaptive(
        recipe, "--data", "a.txt@0.3", "--data", "b/*.md", "--val", "c.txt", "--text-field", "body",
        "--tokenizer", "bpe", "--vocab-size", "300", "--max-seconds", "5", "--seed", "3", "--device", "cpu",
        "--compile", "--checkpoint-activations", "--set", "model.dim=48", "--set", "trainer.seed=4", "--print-config",
    )  # fmt: skip
    found = yaml.safe_load(done.stdout)
    assert found["data"]["sources"] == ["a.txt@0.3", "b/*.md"]
    assert (found["data"]["val"], found["data"]["text_field"]) == ("c.txt", "body")
    assert found["tokenizer"]["kind"] == "bpe"
    assert found["tokenizer"]["vocab_size"] == 300
    assert (found["trainer"]["max_seconds"], found["trainer"]["steps"]) == (5.0, None)
    assert (found["trainer"]["compile"], found["trainer"]["checkpoint_activations"]) == (True, True)
    assert (found["trainer"]["seed"], found["model"]["dim"], found["recipe"]) == (4, 48, "tiny")
    assert not Path("runs").exists()


def test_the_default_without_a_recipe_or_data_is_quickstart(folder: Path) -> None:
    found = yaml.safe_load(adaptive("--print-config").stdout)
    assert (found["recipe"], found["data"]["sources"]) == ("quickstart", ["builtin:facts"])
    alone = yaml.safe_load(adaptive("--data", "x.txt", "--print-config").stdout)
    assert (alone["recipe"], alone["data"]["sources"]) == (None, ["x.txt"])


def test_a_run_is_named_after_its_recipe_or_its_text(recipe: str, tiny: dict[str, Any], text_file: Path) -> None:
    assert adaptive(recipe, "--steps", "0").stdout == "runs/tiny-1\n"
    assert adaptive(recipe, "--steps", "0").stdout == "runs/tiny-2\n"
    small = [f"--set=model.{key}={value}" for key, value in tiny["model"].items() if key != "ffn"]
    done = adaptive("--data", f"{text_file}@2", "--tokenizer", "chars", "--steps", "0", "--device", "cpu", *small)
    assert done.stdout == "runs/rivers-1\n"


def test_a_recipe_finds_its_files_in_the_data_dir(
    recipe: str, tiny: dict[str, Any], folder: Path, text_file: Path
) -> None:
    data = {**tiny["data"], "sources": [text_file.name], "val": text_file.name, "dir": "."}
    Path("own.yaml").write_text(yaml.safe_dump({**tiny, "data": data}))
    lost = adaptive("own.yaml", "--name", "a")
    assert lost.exit_code == 1
    assert "rivers.txt does not exist" in lost.stderr
    assert "--data-dir" in lost.stderr
    done = adaptive("own.yaml", "--data-dir", str(text_file.parent), "--name", "a", "--stop-at", "2")
    assert done.exit_code == 0
    moved = folder / "elsewhere"  # the text is compared by its digest, so its folder may be moved
    moved.mkdir()
    (moved / "rivers.txt").write_text(text_file.read_text())
    done = adaptive("--resume", "--name", "a", "--data-dir", str(moved))
    assert done.exit_code == 0
    assert "\nloss on text it was trained on " in done.stderr  # never called held-out
    assert "held-out loss" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "trainer.stesp=4"], "did you mean trainer.steps?"),
        (["--set", "model.dim=wide"], "model.dim: found 'wide'"),
        (["nothing-such"], "there is no recipe 'nothing-such'"),
        (["--data", "missing.txt", "--name", "m"], "missing.txt"),
        (["--resume", "--name", "nix"], "there is no run runs/nix to resume"),
        (["--resume"], "there is no run"),
        (["--name", "../x"], "--name"),
        (["--device", "cuda:77", "--name", "g", "--data", "builtin:facts"], "cuda:77"),
        (["--tokenizer", "bytess"], "did you mean 'bytes'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_errors_without_a_traceback(folder: Path, arguments: list[str], words: str) -> None:
    done = adaptive(*arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stdout == ""


def request(**given: Any) -> Request:
    """Make the request of `adaptive train` with these options and the defaults of the others."""
    defaults = train.make_context("train", []).params
    return Request(**{key: value for key, value in {**defaults, **given}.items() if key != "nproc"})


@pytest.mark.parametrize(
    ("given", "action"),
    [
        ({"print_config": True}, PrintConfig),
        ({"recipe": "science-qa", "stage": "1", "print_config": True}, PrintConfig),
        ({"name": "a"}, Begin),
        ({"name": "a", "begin_or_resume": True}, BeginOrResume),
        ({"name": "a", "resume": True}, Resume),
        ({"recipe": "science-qa", "stage": "all"}, TrainStages),
    ],
)
def test_a_request_is_resolved_to_one_action_without_writing_anything(
    folder: Path, given: dict[str, Any], action: type
) -> None:
    resolved = resolve(request(**given))
    assert type(resolved) is action
    assert not list(folder.iterdir())


def test_a_job_that_the_launcher_restarted_resumes_its_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/quickstart-1").mkdir(parents=True)
    assert resolve(request()).run.path == Path("runs/quickstart-2")  # type: ignore[union-attr]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = resolve(request())
    assert isinstance(again, BeginOrResume)
    assert again.run.path == Path("runs/quickstart-1")


def test_resume_and_overwrite_exclude_each_other(folder: Path) -> None:
    assert adaptive("--resume", "--overwrite").exit_code == 2


def test_the_recipe_of_a_resumed_run_must_be_its_own(recipe: str) -> None:
    adaptive(recipe, "--name", "a", "--stop-at", "1")
    other = adaptive("quickstart", "--resume", "--name", "a")
    assert other.exit_code == 1
    assert "recipe: 'tiny' -> 'quickstart'" in other.stderr
    assert adaptive(recipe, "--resume", "--name", "a").exit_code == 0
