"""The model that a name or a path means, and the errors where there is none."""

import shutil
from pathlib import Path

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.runtime import Manifest
from adaptive_lm.runtime.format.locate import find_model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """Change to a folder with the exported run `demo` and the run `half`, which is not exported."""
    shutil.copytree(model, tmp_path / "runs" / "demo" / "model")
    (tmp_path / "runs" / "half").mkdir()
    (tmp_path / "runs" / "half" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["demo", "runs/demo", "runs/demo/", "runs/demo/model", "./runs/demo/model"])
def test_a_run_is_found_by_its_name_and_by_every_path(here: Path, name: str) -> None:
    assert find_model(name).resolve() == here / "runs" / "demo" / "model"


def test_a_path_wins_over_a_run_of_the_same_name(here: Path, model: Path) -> None:
    shutil.copytree(model, here / "demo")
    assert find_model("demo") == Path("demo")


def test_a_folder_that_is_no_model_does_not_hide_the_run_of_its_name(here: Path) -> None:
    (here / "demo").mkdir()
    assert find_model("demo") == Path("runs/demo/model")


def test_the_home_folder_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert find_model("~/runs/demo") == here / "runs" / "demo" / "model"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmeo", r"no exported model at dmeo: the folder does not exist, .* exported run; exported runs here: demo"),
        ("runs", r"no exported model at runs: the folder has no manifest.json, .*; exported runs here: demo"),
        ("half", r"run runs/half is not exported: .*; type: adaptive export half"),
        ("runs/half", r"run runs/half is not exported: .*; type: adaptive export runs/half"),
        ("~unknown-user/x", r"no exported model at ~unknown-user/x: the folder does not exist"),
    ],
)  # fmt: skip
def test_a_name_that_means_nothing_lists_what_is_there(here: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_model(name)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "model.onnx.data", "tokenizer.json"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_git_lfs_pointer_is_named_with_the_command_that_fetches_the_file(
    copy: Path, name: str, *, verify: bool
) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"
    (copy / name).write_text(pointer)
    with pytest.raises(UserError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        Manifest.read(copy, verify=verify)
