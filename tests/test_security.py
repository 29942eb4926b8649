"""What no part of the project does, whatever a file or a request says (S52, S54, S56, S57)."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path for room in ("contract", "runtime", "train", "export", "serve") for path in (ROOT / room).rglob("*.py")
)
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.load", "torch.save"}
"""Modules and functions whose files run code when they are read; `torch.save` writes such files."""
UNPACKS = {"zipfile", "tarfile", "shutil.unpack_archive", "onnx.hub"}
LOADS_A_LIBRARY = {"CDLL", "register_custom_ops_library"}
LIBRARIES = {
    "runtime/ops/library.py",  # the operators that the package itself built
    "runtime/ops/sampling.py",  # the same file
    "runtime/execution/providers.py",  # the driver of NVIDIA, and CUDA as onnxruntime's own package brings it
    "train/model/experts/native.py",  # the experts, compiled here from the package's own source
}


@functools.cache
def names(path: Path) -> tuple[str, ...]:
    """Return every module that a file imports, every name it takes from one, and every dotted name it uses."""
    return tuple(names_in(ast.parse(path.read_text("utf-8"))))


def names_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def uses(path: Path, forbidden: set[str]) -> set[str]:
    return {name for name in names(path) for one in forbidden if name == one or name.startswith(f"{one}.")}


def test_no_file_is_unpickled_and_none_written_s52_s56() -> None:
    """Not from disk, and not from a socket: processes exchange JSON."""
    assert {str(path): found for path in FILES if (found := uses(path, RUNS_CODE))} == {}


def test_no_array_is_read_with_pickles_in_it_s52() -> None:
    for path in FILES:
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)) if ".load(" in source else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                allowed = [ast.unparse(word.value) for word in node.keywords if word.arg == "allow_pickle"]
                assert allowed == ["False"], f"{path}:{node.lineno}"


def test_nothing_is_unpacked_from_an_archive_s54() -> None:
    assert {str(path): found for path in FILES if (found := uses(path, UNPACKS))} == {}


def test_only_these_files_load_a_library_and_none_is_named_by_a_model_s57() -> None:
    places = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if any(name.rpartition(".")[2] in LOADS_A_LIBRARY for name in names(path))
    }
    assert places == LIBRARIES


@pytest.mark.parametrize(
    ("source", "forbidden"),
    [
        ("import pickle", "pickle"),
        ("from torch import load", "torch.load"),
        ("import torch\ntorch.load('a')", "torch.load"),
        ("import tarfile as t", "tarfile"),
    ],
)
def test_the_rules_see_what_they_forbid(source: str, forbidden: str, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(source, "utf-8")
    assert forbidden in uses(path, {forbidden})
