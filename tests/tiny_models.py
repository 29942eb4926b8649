"""Tiny seeded models of every kind, for all tests that compare one definition of the model with another."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import reference
import torch

from adaptive_lm.train.model import DepthConfig, FFNConfig, ModelConfig, ModelOutput, Thresholds, Transformer
from adaptive_lm.train.model.norm import RMSNorm

B, T, V = 2, 17, 29
BASE: dict[str, Any] = {
    "vocab_size": V,
    "context_length": 32,
    "dim": 32,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
}


def variant(ffn: dict[str, Any] | None = None, depth: dict[str, Any] | None = None, **top: Any) -> ModelConfig:
    """The base of all tiny models with other fields."""
    experts = FFNConfig(**{"num_experts": 4, "expert_dim": 12, **(ffn or {})})
    return ModelConfig(**{**BASE, **top}, ffn=experts, depth=DepthConfig(**(depth or {})))


ROUTERS = {"layers_share": 0.5}
EXITS = {"exit_layers": (0, 2)}
BOTH = {"layers_share": 0.5, "exit_layers": (0, 1, 2)}
CONFIGS = {
    "top_p": variant(),
    "raw_weights": variant(ffn={"renormalize": False}),
    "top_k": variant(ffn={"routing": "top_k", "experts_per_token": 2}),
    "dense": variant(ffn={"routing": "dense", "dim": 40}),
    "shared_expert": variant(ffn={"shared_expert_dim": 20}),
    "eight_experts": variant(ffn={"num_experts": 8}),
    "one_kv_head": variant(num_kv_heads=1),
    "all_kv_heads": variant(num_kv_heads=4),
    "odd_numbers": variant(head_dim=12, rope_theta=500.0, norm_eps=0.05),
    "tied": variant(tie_embeddings=True),
    "routers_none": variant(depth={**ROUTERS, "skipped_kv": "none"}),
    "routers_project": variant(depth={**ROUTERS, "skipped_kv": "project"}),
    "exits_none": variant(depth={**EXITS, "skipped_kv": "none"}),
    "exits_project": variant(depth={**EXITS, "skipped_kv": "project"}),
    "both_none": variant(depth={**BOTH, "skipped_kv": "none"}),
    "both_project": variant(depth={**BOTH, "skipped_kv": "project"}, norm_eps=0.05),
    "dense_both_none": variant(ffn={"routing": "dense", "dim": 40}, depth={**BOTH, "skipped_kv": "none"}),
}
ROUTED = [name for name, config in CONFIGS.items() if config.ffn.routing != "dense"]
ADAPTS_DEPTH = [name for name, config in CONFIGS.items() if config.adapts_depth]


@cache
def tiny_model(name: str) -> Transformer:
    """The seeded model of that name in CONFIGS, in eval mode; shared: copy it before changing it."""
    model = Transformer(CONFIGS[name])
    season(model, seed=list(CONFIGS).index(name))
    return model.eval()


def season(model: Transformer, seed: int) -> None:
    """Redraws every weight, so that none is silent, even or 1: half of a fresh model makes no difference."""
    generator = torch.Generator().manual_seed(seed)
    norms = {module.weight for module in model.modules() if isinstance(module, RMSNorm)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight in norms:
                weight.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.2 * noise)
            else:
                inputs = weight.shape[-1] if weight.ndim < 3 else weight.shape[1]  # experts hold (E, inputs, outputs)
                weight.copy_((2.5 if name.startswith(("head", "embedding")) else 1.2) * inputs**-0.5 * noise)


def tiny_ids(seed: int = 5, batch: int = B, time: int = T) -> torch.Tensor:
    """(B, T) int64"""
    return torch.randint(V, (batch, time), generator=torch.Generator().manual_seed(seed))


def busy_thresholds(config: ModelConfig) -> Thresholds:
    """Thresholds in the thick of the scores, different in each layer: every mechanism says yes to some tokens only."""
    ranges = ((0.45, 0.85), (0.45, 0.55), (0.5, 0.7))
    return Thresholds(*(torch.linspace(low, high, config.num_layers) for low, high in ranges))


def judge(model: Transformer, ids: torch.Tensor, thresholds: Thresholds, dtype: type = np.float64) -> reference.Result:
    """What tests/reference.py says of the same weights."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    limits = reference.Thresholds(*(limit.numpy() for limit in thresholds))
    return reference.forward(weights, model.config, ids.numpy(), limits, dtype)


def decisions(out: ModelOutput) -> dict[str, torch.Tensor]:
    """The decisions of torch in the shapes of the graph: (L, B, T, E), (L, B, T) and (B, T)."""
    shape = out.exit_layer.shape
    runs = torch.stack([layer.runs.view(shape) for layer in out.routing])
    used = [
        layer.routes.selected_experts.view(*shape, -1) if layer.routes else layer.runs.view(*shape, 1)
        for layer in out.routing
    ]
    return {"selected_experts": torch.stack(used), "layers_run": runs, "exit_layer": out.exit_layer}
