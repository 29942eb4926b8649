"""Runs made without training: every file of a run's folder, for a tiny model whose routers make varied choices."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer, char_tokenizer
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from support.models import season

WORDS = ("the", "a", "sun", "moon", "river", "stone", "rises", "falls", "turns", "sleeps", "over", "under", "night")
MODEL: dict[str, Any] = {
    "context_length": 256,
    "dim": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn": {"num_experts": 4, "expert_dim": 16, "experts_per_token": 1.6},
    "depth": {"layers_share": 0.5, "skipped_kv": "none", "exit_layers": [0, 1]},
}
EVERY_MECHANISM: dict[str, Any] = {
    "heads": {"routing": "top_p", "shared_heads": 1, "heads_per_token": 2.5, "per_token": True},
    "attention": {
        "positions": ["cope", "rope", "cope"], "max_positions": 8, "window": 16, "window_kind": "learned",
        "window_least": 8,
    },
    "ffn": {"num_experts": 4, "expert_dim": 16, "experts_per_token": 1.6, "per_token": True},
    "depth": {
        "layers_share": 0.5, "per_token": True, "exit_layers": [0, 1], "exit_criterion": "router",
        "skipped_kv": "project",
    },
}  # fmt: skip
"""A model whose tokens choose experts, heads, windows, layers and exits, with contextual positions."""


def text(lines: int = 60, seed: int = 0) -> str:
    generator = random.Random(seed)
    return "".join(" ".join(generator.choices(WORDS, k=8)) + ".\n" for _ in range(lines))


def write_run(
    folder: Path,
    steps: tuple[int, ...] = (10,),
    tokenizer: str = "chars",
    distillation: dict[str, Any] | None = None,
    **model: Any,
) -> Path:
    """Write the run `folder` with a checkpoint at each of `steps`; `model` overrides fields of MODEL.

    The controllers have seen no tokens, as in a run of 0 steps, so an export calibrates them on held-out text.
    """
    trained = char_tokenizer(iter([text()])) if tokenizer == "chars" else byte_tokenizer()
    fields = MODEL | {"vocab_size": trained.get_vocab_size()} | model
    config = make_config({"model": fields, "tokenizer": {"kind": tokenizer}, "distillation": distillation})
    for step in steps:
        transformer = Transformer(config.model)
        season(transformer, seed=step)
        save_checkpoint(folder / "checkpoints", step, config, transformer.state_dict(), {"slot": torch.ones(1)}, {})
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (folder / "tokenizer.json").write_text(trained.to_str(), encoding="utf-8")
    (folder / "heldout.txt").write_text(text(seed=1), encoding="utf-8")
    return folder


def store_in(run: Path, dtype: torch.dtype) -> None:
    """Store the weights of a run's last checkpoint in half precision, as an import of such a model does."""
    checkpoint = load_checkpoint(run)
    state = {
        name: value.to(dtype) if value.is_floating_point() and "controller" not in name else value
        for name, value in checkpoint.model_state.items()
    }
    save_checkpoint(run / "checkpoints", checkpoint.step, checkpoint.config, state, {}, {})
