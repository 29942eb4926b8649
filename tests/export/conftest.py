"""Fixtures: a tiny run, written without training, and its exports."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.quick_check import quick_check
from support.runs import write_run

from adaptive_lm.contract.file_names import MANIFEST
from adaptive_lm.export.exporter import Exported, run_export
from adaptive_lm.export.package import write_files
from adaptive_lm.export.source import Source, read
from adaptive_lm.runtime.format.manifest import Precision, Precisions


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the run `tiny`: 3 layers, 4 experts, a depth router, two exits; checkpoints at 10 and 26."""
    return write_run(tmp_path_factory.mktemp("tiny") / "runs" / "tiny", steps=(10, 26))


@pytest.fixture(scope="session")
def source(run: Path) -> Source:
    return read(run)


@pytest.fixture(scope="session")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export the run in fp32 with the whole check. Tests must not change it."""
    return run_export(str(run), tmp_path_factory.mktemp("fp32") / "model", threads=1)


@pytest.fixture(scope="session")
def exported_int8(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return run_export(str(run), tmp_path_factory.mktemp("int8") / "model", Precisions.of("int8"), threads=1)


@pytest.fixture
def here(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a directory that contains only runs/tiny, a copy that may be changed."""
    shutil.copytree(run, tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quick() -> Iterator[None]:
    """Make the check use fewer tokens."""
    with quick_check():
        yield


@pytest.fixture
def content() -> Callable[[Path], dict[str, bytes]]:
    """Read every file below a folder, hidden ones too."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "cope": {"heads": {"routing": "adaptive"}, "attention": {"positions": "cope", "max_positions": 8, "window": 8}},
}


@pytest.fixture(scope="module", params=KINDS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """Write a model in each precision, with the graphs of both targets, for two sets of mechanisms."""
    place = tmp_path_factory.mktemp("folders")
    source = read(write_run(place / "runs" / "tiny", **KINDS[request.param]))
    folders: dict[Precision, Path] = {}
    precisions: tuple[Precision, ...] = ("fp32", "int8", "int4")
    for precision in precisions:
        folders[precision] = place / precision / "model"
        folders[precision].mkdir(parents=True)
        manifest = write_files(source, folders[precision], Precisions.of(precision), ["cpu"])
        (folders[precision] / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folders
