"""The folder of an exported model is complete or unchanged."""

import contextlib
import errno
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.file_names import GRAPH, WEIGHTS, target_files
from adaptive_lm.export import package
from adaptive_lm.export.exporter import Exported, run_export
from adaptive_lm.export.folder import replacing
from adaptive_lm.runtime.format.external_data import external_data
from adaptive_lm.runtime.format.manifest import Manifest

Content = Callable[[Path], dict[str, bytes]]
OURS = '{"format": "adaptive-lm"}'


def write_new(folder: Path) -> None:
    with replacing(folder) as temporary:
        (temporary / "manifest.json").write_text('{"format": "adaptive-lm", "new": 1}')


@pytest.mark.parametrize("before", ["nothing", "empty", "a model", "a link to a model"])
def test_the_new_folder_takes_the_place_of_nothing_or_of_a_model(tmp_path: Path, content: Content, before: str) -> None:
    out, real = tmp_path / "deep" / "model", tmp_path / "real"
    if before == "empty":
        out.mkdir(parents=True)
    if "model" in before:
        place = out if before == "a model" else real
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(OURS)
        (place / "old").write_text("x")
    if before == "a link to a model":
        out.parent.mkdir()
        out.symlink_to(real)
    write_new(out)
    assert list(content(out)) == ["manifest.json"]
    assert "new" in (out / "manifest.json").read_text()
    left = {path.name for path in tmp_path.rglob("*")} - {"deep", "model", "real", "manifest.json"}
    assert not left, "files were left behind"
    assert out.is_symlink() is (before == "a link to a model")


def test_the_current_folder_can_be_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    write_new(Path())
    assert list(content(tmp_path)) == ["mine/manifest.json"]


@pytest.mark.parametrize(
    "files",
    [{"notes.txt": "mine"}, {"manifest.json": '{"name": "a web page"}', "index.html": ""}, {"manifest.json": "[1"}],
    ids=["notes", "another manifest", "a damaged one"],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, content: Content, files: dict[str, str]) -> None:
    out = tmp_path / "model"
    out.mkdir()
    for name, text in files.items():
        (out / name).write_text(text)
    before = content(tmp_path)
    with pytest.raises(
        UserError, match=r"exists and is not an exported model, so it was left unchanged; choose another --out"
    ):
        write_new(out)
    assert content(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(UserError, match="is not an exported model"):
        write_new(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_whatever_goes_wrong_the_model_before_stays(tmp_path: Path, content: Content, error: BaseException) -> None:
    out = tmp_path / "model"
    write_new(out)
    before = content(tmp_path)

    def fail() -> None:
        with replacing(out) as temporary:
            (temporary / "half").write_text("x")
            raise error

    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        fail()
    assert content(tmp_path) == before


def test_a_model_that_cannot_take_its_place_leaves_the_one_before(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one moment in which neither folder is at its path."""
    out = tmp_path / "model"
    write_new(out)
    before, rename = content(tmp_path), Path.rename

    def fails_second(path: Path, target: Path) -> Path:
        if ".writing-" in path.name:
            raise OSError(errno.EACCES, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_second)
    with pytest.raises(UserError, match="Permission denied; nothing was exported"):
        write_new(out)
    assert content(tmp_path) == before


def test_a_folder_that_cannot_be_written_says_which_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write .*file.*; nothing was exported\. Free disk space, or choose another"
    ):
        write_new(tmp_path / "file" / "model")

    def refuse(path: Path, *arguments: object, **more: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot write .*model.*: Read-only file system; nothing was exported"):
        write_new(tmp_path / "model")


def test_what_a_killed_process_of_the_same_number_left_is_no_obstacle(tmp_path: Path, content: Content) -> None:
    left = tmp_path / f".model.writing-{os.getpid()}"
    left.mkdir()
    (left / "half").write_text("x")
    write_new(tmp_path / "model")
    assert list(content(tmp_path)) == ["model/manifest.json"]


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, as on a disk that fills up in the middle of one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_while_the_weights_are_written(here: Path, content: Content) -> None:
    write_new(here / "runs" / "tiny" / "model")
    before = content(here)
    expected = r"cannot write .*; nothing was exported\. Free disk space, or choose another --out"
    with files_of_at_most(20_000), pytest.raises(UserError, match=expected):
        run_export("tiny", threads=1)
    assert content(here) == before


def test_a_disk_that_is_full_when_the_weights_are_written(
    here: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(proto: onnx.ModelProto, graph: Path, weights: Path, later: object) -> None:
        weights.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(package, "save", full)
    before = content(here)
    with pytest.raises(UserError, match="No space left on device; nothing was exported"):
        run_export("tiny", threads=1)
    assert content(here) == before


@pytest.mark.usefixtures("quick")
def test_a_disk_that_is_full_when_the_manifest_is_written(
    here: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(manifest: Manifest, folder: Path) -> Path:
        raise UserError(f"cannot write {folder / 'manifest.json'}: No space left on device; free some space")

    monkeypatch.setattr(Manifest, "write", full)
    before = content(here)
    with pytest.raises(UserError, match="No space left"):
        run_export("tiny", threads=1)
    assert content(here) == before


KILLED = """
import os, signal, sys
from adaptive_lm.export import exporter
exporter.check = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
exporter.run_export("tiny", threads=1)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_an_export_that_is_killed_leaves_no_manifest_and_the_next_one_works(here: Path) -> None:
    """Half a model has no manifest, and no name under which anything would look for one."""
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list(here.rglob("manifest.json"))
    left = [path.name for path in (here / "runs" / "tiny").iterdir() if "model" in path.name]
    assert len(left) == 1
    assert left[0].startswith(".model.writing-")
    exported = run_export("tiny", threads=1)
    Manifest.read(exported.folder)


def test_the_folder_holds_what_the_manifest_lists_and_nothing_else(exported: Exported) -> None:
    names = sorted(path.name for path in exported.folder.iterdir())
    assert names == ["manifest.json", *target_files("cpu"), GRAPH, WEIGHTS, "tokenizer.json"]
    manifest = Manifest.read(exported.folder, verify=True)
    assert sorted(manifest.files) == names[1:]


def test_large_weights_lie_outside_the_graph_and_inside_the_folder(exported: Exported) -> None:
    references = list(external_data(exported.folder / GRAPH))
    assert {reference.location for reference in references} == {WEIGHTS}
    assert max(r.offset + r.length for r in references) <= (exported.folder / WEIGHTS).stat().st_size
    onnx.checker.check_model(exported.folder / GRAPH, full_check=True)


def test_the_manifest_tells_what_made_it_and_what_it_takes(exported: Exported) -> None:
    manifest = Manifest.read(exported.folder)
    assert {k: manifest.created_by[k] for k in ("opset", "ir", "run", "step")} == {
        "opset": 24, "ir": 11, "run": "tiny", "step": 26
    }  # fmt: skip
    assert manifest.inputs["ids"].model_dump() == {"dtype": "int64", "shape": ["B", "T"]}
    assert manifest.inputs["exit_threshold"].model_dump() == {"dtype": "float32", "shape": [3, "B"]}
    assert manifest.inputs["past_key.2"].shape == ["B", 2, "C", 8]
    assert manifest.outputs["selected_experts"].model_dump() == {"dtype": "bool", "shape": [3, "B", "T", 4]}
    model = manifest.model
    assert [layer.depth_router for layer in model.layers] == [False, True, False]
    assert [layer.exit for layer in model.layers] == [True, True, False]
    assert (model.skipped_kv, model.num_experts, model.eos_id, model.precision) == ("none", 4, 0, "fp32")


def test_a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"caf\\udce9.* is not UTF-8.* Rename the folder"),
        replacing(tmp_path / os.fsdecode(b"caf\xe9")),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_refused_before_anything_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, content: Callable[[Path], dict[str, bytes]]
) -> None:
    before = content(here)
    monkeypatch.setattr(package.shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000))
    monkeypatch.setattr(package, "save", lambda *_: pytest.fail("it began to write"))
    lines: list[str] = []
    with pytest.raises(
        UserError, match=r"takes 0\.\d MiB \(portable .*, cpu .*\), the disk of .* has 0\.3 MiB; nothing"
    ):
        run_export("tiny", log=lines.append)
    assert any(re.match(r"writing portable 0\.\d MiB, cpu 0\.\d MiB to .*runs/tiny$", line) for line in lines)
    assert content(here) == before
