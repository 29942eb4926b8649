"""Compilation: its requirements, and the folder of its results."""

import os
from pathlib import Path

import pytest
import torch
from support.models import variant

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.loop.setup.compilation import compile_model
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.system.cache_folder import cache_folder

CPU = torch.device("cpu")


def every_compiler(name: str) -> str:
    """Find every program."""
    return f"/usr/bin/{name}"


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Transformer:
    """Make a model; no test here runs it, so nothing is compiled."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that the test undoes what is set
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return Transformer(variant())


def test_machine_code_is_stored_in_the_users_cache(
    blocks: Transformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ADAPTIVE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_model(blocks, cache_folder(None), CPU, every_compiler)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "adaptive-lm" / "compiled")


def test_machine_code_follows_the_cache_of_the_config(blocks: Transformer, tmp_path: Path) -> None:
    compile_model(blocks, cache_folder(str(tmp_path)), CPU, every_compiler)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")


def test_a_folder_that_the_user_chose_for_torch_stays(
    blocks: Transformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compile_model(blocks, cache_folder(None), CPU, every_compiler)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


@pytest.mark.parametrize("chosen", [None, "no-such-compiler"])
def test_without_a_compiler_the_user_is_told_what_to_do(
    blocks: Transformer, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    if chosen:
        monkeypatch.setenv("CXX", chosen)
    with pytest.raises(UserError, match=f"{chosen or 'clang'}.*--no-compile"):
        compile_model(blocks, cache_folder(None), CPU, lambda name: None)
