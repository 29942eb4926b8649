"""Tiny models with recurrent mixers: each alone, in lists with attention, and with everything that may skip them."""

from functools import cache

import numpy as np
import torch
from reference import model as reference

from adaptive_lm.train.model import ModelConfig, ThresholdTensors, Transformer
from support.graphs.bare_graph import shifted
from support.models import (
    BOTH,
    BY_COMPLEXITY,
    BY_MASS_AND_SHARED,
    EXITS,
    LENGTH,
    PER_TOKEN,
    ROUTERS,
    SIX_HEADS,
    busy_thresholds,
    judge,
    season,
    seed_of,
    tiny_ids,
    variant,
)

KINDS = ("retnet", "mamba2", "gated_delta", "rwkv7")
NONE, PROJECT = ({**BOTH, "skipped_kv": policy} for policy in ("none", "project"))
MIXER_MODELS: dict[str, ModelConfig] = {
    **{kind: variant(mixers=kind, ffn={"routing": "dense", "dim": 40}) for kind in KINDS},
    **{f"{kind}_none": variant(mixers=kind, depth=NONE) for kind in KINDS},
    **{
        f"{kind}_hybrid_project": variant(
            mixers=(kind, kind, "attention", kind),
            heads=BY_COMPLEXITY,
            ffn={**PER_TOKEN, "shared_expert_dim": 20},
            depth={**PROJECT, "exit_criterion": "margin"},
        )
        for kind in KINDS
    },
    "all_kinds": variant(
        mixers=("mamba2", "rwkv7", "attention", "gated_delta", "retnet"),
        num_layers=5,
        attention={
            **LENGTH, "window": (0, 0, 8, 0, 0), "positions": ("rope", "rope", "cope", "none", "rope"),
            "max_positions": 6,
        },
        heads=BY_MASS_AND_SHARED,
        depth={**BOTH, "exit_criterion": "router", "skipped_kv": "none"},
        norm="layer",
        **SIX_HEADS,
    ),
    "odd_sizes": variant(
        mixers=("gated_delta", "mamba2", "rwkv7", "retnet"),
        attention={"positions": "none"},
        recurrence={"head_dim": 5, "conv": 8, "rank": 3},
        depth=ROUTERS,
        num_heads=3,
        num_kv_heads=1,
        head_dim=8,
        norm_place="post",
    ),
    "no_convolution": variant(
        mixers=("gated_delta", "mamba2", "gated_delta", "attention"),
        recurrence={"conv": 1},
        depth={**EXITS, "skipped_kv": "none"},
        norm_place="sandwich",
        parallel_residual=True,
    ),
    "partly_rotated": variant(mixers=("retnet", "attention", "retnet", "retnet"), attention={"rope": {"share": 0.5}}),
}  # fmt: skip


@cache
def mixer_model(name: str) -> Transformer:
    """Return the seeded torch model of that name in MIXER_MODELS. It is shared: copy it before changing it."""
    model = Transformer(MIXER_MODELS[name])
    season(model, seed=seed_of(name))
    return model.eval()


T, B = 24, 3
"""Tokens of a text, and texts, that the models are judged by."""


@cache
def mixer_ids() -> np.ndarray:
    """Return the texts (B, T)."""
    return tiny_ids(seed=7, batch=B, time=T).numpy()


def mixer_limits(name: str, b: int = 0) -> ThresholdTensors:
    """Return the thresholds of text b; those of the texts differ."""
    return shifted(busy_thresholds(MIXER_MODELS[name]), (0.0, 0.03, -0.03)[b])


@cache
def judged(name: str, b: int = 0) -> reference.Result:
    """Return what the plain model makes of text b at its thresholds."""
    result = judge(mixer_model(name), torch.from_numpy(mixer_ids()[b : b + 1]), mixer_limits(name, b))
    assert not result.near_ties().any(), "choose another seed: these decisions may fall either way"
    return result
