"""Tiny models, written once; a test that damages one takes a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.rich_graph import write_rich
from support.tiny_graph import write_model

from adaptive_lm.runtime import Engine, load


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model; not to be changed."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture(scope="session")
def engine(model: Path) -> Engine:
    """The tiny model, loaded once; every generation begins anew."""
    return load(model, device="cpu", threads=1)


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model with every mechanism; not to be changed."""
    return write_rich(tmp_path_factory.mktemp("rich") / "model")


@pytest.fixture
def rich_copy(rich: Path, tmp_path: Path) -> Path:
    """A copy of it, with its held-out text, to be calibrated."""
    shutil.copy(rich.parent / "heldout.txt", tmp_path)
    return Path(shutil.copytree(rich, tmp_path / "model"))


@pytest.fixture(scope="session")
def rich_engine(rich: Path) -> Engine:
    """It, loaded once."""
    return load(rich, device="cpu", threads=1)


@pytest.fixture
def changed(copy: Path) -> Callable[..., Path]:
    """The tiny model with changed sections of its manifest."""
    from support.tiny_graph import write_manifest

    return lambda **changes: write_manifest(copy, **changes)
