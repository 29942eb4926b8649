"""Compiling a model: what it needs, and where the machine code is kept for the next run."""

from __future__ import annotations

import logging
import os
import shutil

import torch

from ...contract.errors import UserError
from ..config.run_config import RunConfig
from ..model.transformer import Transformer
from ..system.cache_folder import cache_folder

RECOMPUTING_LOG = "torch._higher_order_ops.wrap"
COMPILERS = ("g++", "clang++", "cl")


def compile_model(model: Transformer, config: RunConfig, device: torch.device) -> None:
    """Compiles the blocks when they first run, or takes them from an earlier run of the same shapes: torch's cache is
    put beside that of tokenised text, where it outlives a restart of the machine. `TORCHINDUCTOR_CACHE_DIR` wins.

    Raises:
        UserError: the model computes on the CPU and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX")
    if device.type == "cpu" and not any(shutil.which(name) for name in ((compiler,) if compiler else COMPILERS)):
        looked = f"CXX={compiler}" if compiler else ", ".join(COMPILERS)
        raise UserError(
            f"trainer.compile needs a C++ compiler, and there is none (looked for {looked}); install g++, or train "
            "without: --no-compile"
        )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder(config.data.cache_dir) / "compiled"))
    logging.getLogger(RECOMPUTING_LOG).addFilter(_is_news)
    model.compile_blocks()


def _is_news(record: logging.LogRecord) -> bool:
    """Not that what is recomputed must change nothing in place, which torch says once: no block does."""
    return "context_fn is passed" not in record.getMessage()
