"""Compilation of a model; its machine code is stored for the next run."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from ....contract.errors import UserError
from ...model.transformer import Transformer

RECOMPUTING_LOG = "torch._higher_order_ops.wrap"
COMPILERS = ("g++", "clang++", "cl")


def compile_model(
    model: Transformer, cache: Path, device: torch.device, which: Callable[[str], str | None] = shutil.which
) -> None:
    """Compile the blocks of the model when they first run.

    Machine code of an earlier run with the same shapes is reused: torch's cache is put into `cache`, where it outlives
    a restart of the machine. The variable `TORCHINDUCTOR_CACHE_DIR` overrides that.

    Args:
        model: The model.
        cache: The cache folder.
        device: Where the model computes.
        which: Finds a program.

    Raises:
        UserError: The model computes on the CPU and there is no C++ compiler.
    """
    if device.type == "cpu" and not has_compiler(which):
        compiler = os.environ.get("CXX")
        searched = f"CXX={compiler}" if compiler else ", ".join(COMPILERS)
        raise UserError(
            f"trainer.compile needs a C++ compiler, and there is none (searched for {searched}); install g++, or train "
            "without: --no-compile"
        )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))
    logging.getLogger(RECOMPUTING_LOG).addFilter(_is_news)
    model.compile_blocks()


def has_compiler(which: Callable[[str], str | None] = shutil.which) -> bool:
    """Return whether there is a C++ compiler: the one that CXX names, else one of the usual names."""
    compiler = os.environ.get("CXX")
    return any(which(name) for name in ((compiler,) if compiler else COMPILERS))


def _is_news(record: logging.LogRecord) -> bool:
    """Drop torch's warning that recomputed code must change nothing in place: no block does."""
    return "context_fn is passed" not in record.getMessage()
