"""Tiny models, written once; a test that damages one takes a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.graphs.rich_graph import write_rich
from support.graphs.tiny_graph import write_model

from adaptive_lm.runtime import Engine, load


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model, and return its folder. Tests must not change it."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """Copy the tiny model for tests that damage it."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture(scope="session")
def engine(model: Path) -> Engine:
    """Load the tiny model once; every generation starts with an empty cache."""
    return load(model, device="cpu", threads=1)


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model with every mechanism, and return its folder. Tests must not change it."""
    return write_rich(tmp_path_factory.mktemp("rich") / "model")


@pytest.fixture
def rich_copy(rich: Path, tmp_path: Path) -> Path:
    """Copy the rich model with its held-out text, for tests that calibrate it."""
    shutil.copy(rich.parent / "heldout.txt", tmp_path)
    return Path(shutil.copytree(rich, tmp_path / "model"))


@pytest.fixture(scope="session")
def rich_engine(rich: Path) -> Engine:
    """Load the rich model once."""
    return load(rich, device="cpu", threads=1)


@pytest.fixture
def changed(copy: Path) -> Callable[..., Path]:
    """Return a function that changes sections of the tiny model's manifest."""
    from support.graphs.tiny_graph import write_manifest

    return lambda **changes: write_manifest(copy, **changes)
