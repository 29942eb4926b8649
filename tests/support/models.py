"""Tiny seeded models of every kind, for tests that compare the definitions of the model."""

import zlib
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from reference import model as reference

from adaptive_lm.train.model import DepthConfig, FFNConfig, ModelConfig, ModelOutput, ThresholdTensors, Transformer
from adaptive_lm.train.model.config.sections import AttentionConfig, HeadsConfig
from adaptive_lm.train.model.norm import LayerNorm, RMSNorm
from support.cover import covering

B, T, V = 2, 17, 29
BASE: dict[str, Any] = {
    "vocab_size": V,
    "context_length": 32,
    "dim": 32,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
}


def variant(
    ffn: dict[str, Any] | None = None,
    depth: dict[str, Any] | None = None,
    attention: dict[str, Any] | None = None,
    heads: dict[str, Any] | None = None,
    **top: Any,
) -> ModelConfig:
    """Return the base config of the tiny models with other fields."""
    return ModelConfig(
        **{**BASE, **top},
        ffn=FFNConfig(**{"num_experts": 4, "expert_dim": 12, **(ffn or {})}),
        depth=DepthConfig(**(depth or {})),
        attention=AttentionConfig(**(attention or {})),
        heads=HeadsConfig(**(heads or {})),
    )


ROUTERS = {"layers_share": 0.5}
EXITS = {"exit_layers": (0, 2)}
BOTH = {"layers_share": 0.5, "exit_layers": (0, 1, 2)}
SIX_HEADS = {"num_heads": 6, "num_kv_heads": 3, "head_dim": 8}
COPE = {"positions": "cope", "max_positions": 6}
MIXED = {"positions": ("rope", "cope", "none", "cope"), "max_positions": 6}
BY_MASS = {"routing": "top_p", "heads_per_token": 2.5}
BY_MASS_AND_SHARED = {"routing": "top_p", "shared_heads": 2, "heads_per_token": 4.5}
BY_COMPLEXITY = {"routing": "adaptive", "heads_per_token": 2}
PER_TOKEN = {"per_token": True}
FIXED = {"controller": "fixed", "router_top_p": 1.0}
LENGTH = {"window": 8, "window_kind": "length", "window_least": 3}
ENTROPY = {"window": 12, "window_kind": "entropy", "window_least": 2}
LEARNED = {"window": (0, 12, 9, 14), "window_kind": "learned", "window_least": 2, "window_ramp": 4}
CONFIGS = {
    "top_p": variant(),
    "raw_weights": variant(ffn={"renormalize": False}),
    "top_k": variant(ffn={"routing": "top_k", "experts_per_token": 2}),
    "dense": variant(ffn={"routing": "dense", "dim": 40}),
    "shared_expert": variant(ffn={"shared_expert_dim": 20}),
    "eight_experts": variant(ffn={"num_experts": 8}),
    "one_kv_head": variant(num_kv_heads=1),
    "all_kv_heads": variant(num_kv_heads=4),
    "odd_numbers": variant(head_dim=12, attention={"rope": {"theta": 500.0}}, norm_eps=0.05),
    "tied": variant(tie_embeddings=True),
    "routers_none": variant(depth={**ROUTERS, "skipped_kv": "none"}),
    "routers_project": variant(depth={**ROUTERS, "skipped_kv": "project"}),
    "exits_none": variant(depth={**EXITS, "skipped_kv": "none"}),
    "exits_project": variant(depth={**EXITS, "skipped_kv": "project"}),
    "both_none": variant(depth={**BOTH, "skipped_kv": "none"}),
    "both_project": variant(depth={**BOTH, "skipped_kv": "project"}, norm_eps=0.05),
    "dense_both_none": variant(ffn={"routing": "dense", "dim": 40}, depth={**BOTH, "skipped_kv": "none"}),
    # each mechanism by itself
    "heads_top_k": variant(heads={"routing": "top_k", "shared_heads": 1, "heads_per_token": 3}),
    "heads_top_p": variant(heads={**BY_MASS, **PER_TOKEN}),
    "heads_shared": variant(heads=BY_MASS_AND_SHARED, **SIX_HEADS),
    "heads_adaptive": variant(heads={**BY_COMPLEXITY, "least_heads": 1, "most_heads": 3}),
    "cope": variant(attention=COPE),
    "window_fixed": variant(attention={"window": 5}),
    "window_length": variant(attention=LENGTH),
    "window_entropy": variant(attention=ENTROPY),
    "window_learned": variant(attention=LEARNED),
    "experts_per_token": variant(ffn=PER_TOKEN),
    "depth_per_token": variant(depth={**ROUTERS, **PER_TOKEN, "per_token_reach": 1.5}),
    "controllers": variant(
        heads={**BY_MASS, "controller": "pi", "scope": "model"},
        ffn={"controller": "learned", "router_top_p": {"first": 0.4, "last": 0.6}},
        depth={**ROUTERS, "controller": "pi"},
    ),
    "exit_margin": variant(depth={**EXITS, "exit_criterion": "margin"}),
    "exit_entropy": variant(depth={**EXITS, "exit_criterion": "entropy", "skipped_kv": "none"}),
    "exit_router": variant(depth={**EXITS, "exit_criterion": "router"}),
    # and together
    "shared_cope": variant(heads=BY_MASS_AND_SHARED, attention=MIXED, **SIX_HEADS),
    "cope_project": variant(attention=COPE, depth={**BOTH, "skipped_kv": "project"}),
    "cope_none": variant(attention=COPE, depth={**BOTH, "skipped_kv": "none"}),
    "window_none": variant(attention={"window": 4}, depth={**ROUTERS, "skipped_kv": "none"}),
    "learned_project": variant(attention=LEARNED, depth={**BOTH, "skipped_kv": "project"}),
    "length_none": variant(
        attention={**LENGTH, **COPE, "window": (8, 6, 0, 7)},
        depth={**BOTH, "skipped_kv": "none", "exit_criterion": "entropy"},
    ),
    "cope_window_project": variant(
        attention={**COPE, "window": 7}, depth={**BOTH, "skipped_kv": "project"}, num_kv_heads=1
    ),
    "adaptive_per_token": variant(
        heads=BY_COMPLEXITY, ffn=PER_TOKEN, depth={**ROUTERS, **PER_TOKEN, "skipped_kv": "none"}
    ),
    "entropy_exit_router": variant(
        heads={"routing": "top_k", "heads_per_token": 2},
        attention={**ENTROPY, "positions": "none"},
        depth={**EXITS, "exit_criterion": "router", "skipped_kv": "none"},
        ffn={"routing": "dense", "dim": 40},
    ),
    "everything_project": variant(
        heads={**BY_MASS_AND_SHARED, **PER_TOKEN},
        attention={**LEARNED, **MIXED},
        ffn={**PER_TOKEN, "shared_expert_dim": 20},
        depth={**BOTH, **PER_TOKEN, "exit_criterion": "margin", "skipped_kv": "project"},
        tie_embeddings=True,
        **SIX_HEADS,
    ),
    "everything_none": variant(
        heads=BY_COMPLEXITY,
        attention={**LEARNED, **MIXED},
        ffn={**PER_TOKEN, "renormalize": False},
        depth={**BOTH, **PER_TOKEN, "exit_criterion": "router", "skipped_kv": "none"},
    ),
}
NUMBERED = {name: number for number, name in enumerate(CONFIGS)}
"""The seeds of the models above. Those of later ones come from their names, so that none depends on the others."""
BIASES = {"qkv_bias": True, "o_bias": True}
LONGER = {"factor": 4.0, "original_context": 8}
ROPES = (
    {"theta": 500.0, "scaling": {"kind": "llama3", **LONGER, "high_frequency_factor": 3.0}},
    {"theta": 500.0, "scaling": {"kind": "yarn", **LONGER}},
    {"share": 0.5, "scaling": {"kind": "linear", "factor": 3.0}},
    {"scaling": {"kind": "longrope", **LONGER, "short_factors": (1, 1, 1, 1), "long_factors": (1, 1.5, 2, 5)}},
)
CONFIGS |= {
    "qk_norm_none": variant(attention={"qk_norm": "none"}),
    "qk_norm_full": variant(attention={"qk_norm": "full", **BIASES}),
    "biases": variant(attention=BIASES, ffn={"routing": "dense", "dim": 40}),
    "ropes": variant(attention={"rope": ROPES}),
    "softcap": variant(attention={"softcap": 2.5}),
    "softcap_cope": variant(attention={**COPE, **BIASES, "softcap": 1.5, "qk_norm": "none"}),
    "attention_heads_none": variant(
        heads={**BY_MASS_AND_SHARED, **PER_TOKEN},
        attention={**BIASES, "window": 7, "qk_norm": "none", "softcap": 3.0, "rope": {"share": 0.75}},
        depth={**BOTH, "skipped_kv": "none"},
        **SIX_HEADS,
    ),
    "attention_full_project": variant(
        attention={**LEARNED, **BIASES, "qk_norm": "full", "softcap": 3.0, "rope": ROPES},
        depth={**BOTH, "skipped_kv": "project"},
        num_kv_heads=1,
    ),
}
# experts that compute nothing, and tokens without any expert
ZERO = {"zeros": 1, "copies": 1, "constants": 2}
CONFIGS |= {
    "zero_experts_none": variant(
        ffn={"zero_experts": ZERO, "shared_expert_dim": 20, **PER_TOKEN}, depth={**BOTH, "skipped_kv": "none"}
    ),
    "relu": variant(ffn={"routing": "relu", "num_experts": 3}, depth={**BOTH, "skipped_kv": "project"}),
}
# norms, residuals, embedding and logits
CONFIGS |= {
    "layer_norm": variant(norm="layer", attention=LEARNED, depth={**BOTH, "skipped_kv": "project"}),
    "layer_norm_none": variant(
        norm="layer",
        heads={**BY_MASS, **PER_TOKEN},
        depth={**BOTH, "exit_criterion": "router", "skipped_kv": "none"},
    ),
    "post_project": variant(
        norm_place="post",
        heads=BY_MASS_AND_SHARED,
        attention=LEARNED,
        ffn={**PER_TOKEN, "shared_expert_dim": 20},
        depth={**BOTH, "exit_criterion": "margin", "skipped_kv": "project"},
        **SIX_HEADS,
    ),
    "post_none": variant(norm="layer", norm_place="post", heads=BY_COMPLEXITY, depth={**BOTH, "skipped_kv": "none"}),
    "post_dense": variant(norm_place="post", ffn={"routing": "dense", "dim": 40}),
    "sandwich_project": variant(
        norm_place="sandwich",
        ffn={"renormalize": False},
        depth={**BOTH, "exit_criterion": "entropy", "skipped_kv": "project"},
        tie_embeddings=True,
        embedding_scale=2.5,
        logits_softcap=6.0,
    ),
    "sandwich_none": variant(
        norm="layer",
        norm_place="sandwich",
        attention={**COPE, "window": 7},
        ffn={"routing": "top_k", "experts_per_token": 2, "shared_expert_dim": 20},
        depth={**BOTH, "skipped_kv": "none"},
    ),
    "parallel_project": variant(
        norm="layer", parallel_residual=True, depth={**BOTH, "skipped_kv": "project"}, ffn={"shared_expert_dim": 20}
    ),
    "parallel_none": variant(
        norm_place="post", parallel_residual=True, heads=BY_MASS, depth={**BOTH, "skipped_kv": "none"}
    ),
    "parallel_sandwich": variant(
        norm_place="sandwich", parallel_residual=True, ffn={"routing": "dense", "dim": 40}, attention={"window": 5}
    ),
    "learned_positions": variant(norm="layer", attention={"positions": "learned"}, tie_embeddings=True),
    "learned_positions_none": variant(
        attention={**LENGTH, "positions": "learned"},
        embedding_scale=1.5,
        logits_softcap=5.0,
        depth={**BOTH, "exit_criterion": "margin", "skipped_kv": "none"},
    ),
    "post_capped": variant(
        norm_place="post",
        attention={**BIASES, "qk_norm": "none"},
        ffn={
            "num_experts": 8,
            "most_experts": 4,
            "dense_layers": (1,),
            "dim": 24,
            "bias": True,
            "shared_expert_dim": 20,
            "shared_gate": True,
            "score": "sigmoid",
            "selection_bias": True,
            **FIXED,
        },
        depth={**BOTH, "skipped_kv": "none"},
    ),
    "sandwich_parallel_capped": variant(
        norm="layer",
        norm_place="sandwich",
        parallel_residual=True,
        attention={**BIASES, **LEARNED, "softcap": 3.0},
        ffn={"num_experts": 8, "most_experts": 3, "bias": True, "gated": False, "activation": "relu", **FIXED},
        depth={**BOTH, "skipped_kv": "project"},
    ),
    # shapes of whole families
    "olmo2_shape": variant(norm_place="post", attention={"qk_norm": "full"}, ffn={"routing": "dense", "dim": 40}),
    "gemma2_shape": variant(
        norm_place="sandwich",
        attention={"qk_norm": "none", "softcap": 5.0, "window": (6, 0, 6, 0)},
        ffn={"routing": "dense", "dim": 40, "activation": "gelu_tanh"},
        tie_embeddings=True,
        embedding_scale=5.6,
        logits_softcap=6.0,
    ),
    "gpt2_shape": variant(
        norm="layer",
        attention={**BIASES, "qk_norm": "none", "positions": "learned"},
        ffn={"routing": "dense", "dim": 40, "bias": True, "gated": False, "activation": "gelu_tanh"},
        num_kv_heads=4,
        tie_embeddings=True,
    ),
    "neox_shape": variant(
        norm="layer",
        parallel_residual=True,
        attention={**BIASES, "qk_norm": "none", "rope": {"share": 0.25}},
        ffn={"routing": "dense", "dim": 40, "bias": True, "gated": False, "activation": "gelu"},
        num_kv_heads=4,
    ),
}
CONFIGS |= {
    # the forms of trained mixtures and dense models of others
    "capped": variant(ffn={"num_experts": 8, "most_experts": 3, **FIXED}),
    "capped_at_one": variant(ffn={"most_experts": 1, "experts_per_token": 1, **FIXED}),
    "capped_at_all": variant(ffn={"most_experts": 4, **PER_TOKEN}),
    "many_experts": variant(ffn={"num_experts": 300, "most_experts": 7, "expert_dim": 8, **FIXED}, num_layers=2),
    "sigmoid": variant(ffn={"score": "sigmoid"}),
    "sigmoid_capped": variant(
        ffn={
            "score": "sigmoid", "num_experts": 8, "most_experts": 4, "selection_bias": True, "router_bias": True,
            "renormalize": False, **FIXED,
        }
    ),
    "selection_bias": variant(
        ffn={"routing": "top_k", "experts_per_token": 2, "num_experts": 6, "selection_bias": True, "score": "sigmoid"}
    ),
    "gated_shared": variant(ffn={"shared_expert_dim": 20, "shared_gate": True, "num_experts": 6, "most_experts": 4}),
    "dense_layers": variant(
        ffn={"dense_layers": (0, 2), "dim": (24, 1, 40, 1), "most_experts": 2, **FIXED}, depth={**BOTH}
    ),
    "dense_bias_gelu": variant(
        ffn={"routing": "dense", "dim": (24, 40, 8, 16), "bias": True, "gated": False, "activation": "gelu"}
    ),
    "relu_experts": variant(ffn={"bias": True, "gated": False, "activation": "relu", "shared_expert_dim": 12}),
    "everything_capped": variant(
        heads={**BY_MASS_AND_SHARED, **PER_TOKEN},
        attention={**LEARNED, **MIXED},
        ffn={**PER_TOKEN, "num_experts": 8, "most_experts": 5, "dense_layers": (1,), "dim": 24, "bias": True,
             "shared_expert_dim": 20, "shared_gate": True, "score": "sigmoid", "selection_bias": True,
             "router_bias": True, "activation": "gelu"},
        depth={**BOTH, **PER_TOKEN, "exit_criterion": "margin", "skipped_kv": "none"},
        **SIX_HEADS,
    ),
    "gelu_tanh_experts": variant(ffn={"activation": "gelu_tanh", "bias": True, "most_experts": 3}),
}  # fmt: skip
CONFIGS |= {
    # layers 1 and 2 twice; layer 1 four times, with exits inside
    "recursion": variant(
        num_layers=6, depth={**ROUTERS, "skipped_kv": "none"}, recursion={"first": 1, "layers": 2, "times": 2}
    ),
    "recursion_project": variant(
        num_layers=6,
        heads={**BY_MASS, **PER_TOKEN},
        attention={"window": 5},
        ffn={"shared_expert_dim": 20},
        depth={**ROUTERS, **PER_TOKEN, "exit_layers": (0, 2, 3), "skipped_kv": "project"},
        recursion={"first": 1, "layers": 1, "times": 4},
    ),
}
# mixers with a recurrent state
CONFIGS |= {
    "retnet_project": variant(mixers="retnet", recurrence={"chunk": 4}, depth={**BOTH, "skipped_kv": "project"}),
    "retnet_hybrid_none": variant(
        mixers=("retnet", "retnet", "attention", "retnet"),
        recurrence={"chunk": 5},
        heads=BY_MASS,
        attention={"window": (0, 0, 6, 0)},
        depth={**BOTH, "skipped_kv": "none"},
    ),
    "mamba2_hybrid_project": variant(
        mixers=("mamba2", "attention", "mamba2", "mamba2"),
        recurrence={"chunk": 5, "head_dim": 12, "conv": 3},
        heads=BY_COMPLEXITY,
        ffn=PER_TOKEN,
        depth={**BOTH, "exit_criterion": "margin", "skipped_kv": "project"},
    ),
    "mamba2_none": variant(
        mixers="mamba2",
        ffn={"routing": "dense", "dim": 40},
        depth={**BOTH, "skipped_kv": "none"},
        norm_place="sandwich",
    ),
    "gated_delta_hybrid_none": variant(
        mixers=("gated_delta", "attention", "gated_delta", "gated_delta"),
        recurrence={"conv": 3, "chunk": 8, "head_dim": 12},
        ffn={"shared_expert_dim": 20},
        depth={**BOTH, "skipped_kv": "none"},
    ),
    "rwkv7_project": variant(
        mixers="rwkv7", recurrence={"chunk": 8, "rank": 6}, norm="layer", depth={**BOTH, "skipped_kv": "project"}
    ),
}
ROUTED = [name for name, config in CONFIGS.items() if config.ffn.routing != "dense"]
ADAPTS_DEPTH = [name for name, config in CONFIGS.items() if config.adapts_depth]
ROUTES_HEADS = [name for name, config in CONFIGS.items() if config.heads.routing != "all"]
HAS_WINDOWS = [name for name, config in CONFIGS.items() if config.has_windows]
COVER = covering(CONFIGS)
"""Models that together have every mechanism, for tests that would be slow with all."""


@cache
def tiny_model(name: str) -> Transformer:
    """Return the seeded model of that name in CONFIGS, in eval mode. It is shared: copy it before changing it."""
    model = Transformer(CONFIGS[name])
    season(model, seed=seed_of(name))
    return model.eval()


def seed_of(name: str) -> int:
    """Return the seed of the model of that name."""
    return NUMBERED.get(name, zlib.crc32(name.encode()))


def season(model: Transformer, seed: int) -> None:
    """Redraw every weight, so that none is 0, equal or 1: half of a fresh model has no effect on the output."""
    generator = torch.Generator().manual_seed(seed)
    norms = {module.weight for module in model.modules() if isinstance(module, (RMSNorm, LayerNorm))}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight in norms:
                weight.copy_(1 + 0.3 * noise)
            elif weight.ndim == 0 or name.endswith("bias"):  # or a learned threshold
                weight.copy_(0.2 * noise)
            else:
                inputs = weight.shape[-1] if weight.ndim < 3 else weight.shape[1]  # experts hold (E, inputs, outputs)
                weight.copy_((2.5 if name.startswith(("head", "embedding")) else 1.2) * inputs**-0.5 * noise)
        attention = model.config.attention
        for name, window in model.named_buffers():
            if name.endswith("selection_bias"):  # of the size of the scores, so that it changes some choices
                window.copy_(0.15 * torch.randn(window.shape, generator=generator))
            if name.endswith("window_controller.window"):  # different in each layer, and at neither end of its range
                layer = int(name.split(".")[1])
                window.fill_(attention.window_least + 1 + 2 * layer)


def tiny_ids(seed: int = 5, batch: int = B, time: int = T) -> torch.Tensor:
    """Draw token ids (B, T) int64."""
    return torch.randint(V, (batch, time), generator=torch.Generator().manual_seed(seed))


def busy_thresholds(config: ModelConfig) -> ThresholdTensors:
    """Return thresholds in the middle of the scores, different in each layer: each mechanism acts on some tokens."""
    leave = {"top_prob": (0.5, 0.7), "margin": (0.3, 0.5), "entropy": (0.5, 0.7), "router": (0.7, 0.8)}
    ranges = ((0.45, 0.85), (0.45, 0.55), leave[config.depth.exit_criterion], (0.4, 0.85))
    levels = ThresholdTensors(*(torch.linspace(low, high, config.num_layers) for low, high in ranges))
    return levels._replace(router_ratio=torch.linspace(0.1, 0.3, config.num_layers)) if config.dials_ratio else levels


def even_thresholds(
    layers: int, top_p: float = 1.0, depth: float = 0.0, leave: float = 1.0, heads: float = 1.0
) -> ThresholdTensors:
    """Make thresholds that are the same in every layer; by default everything runs."""
    return ThresholdTensors(*(torch.full((layers,), value) for value in (top_p, depth, leave, heads)))


def judge(
    model: Transformer, ids: torch.Tensor, thresholds: ThresholdTensors, dtype: type = np.float64
) -> reference.Result:
    """Run tests/reference/model.py with the weights of `model`."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return reference.forward(weights, model.config, ids.numpy(), as_arrays(thresholds), dtype)


def as_arrays(thresholds: ThresholdTensors) -> reference.ThresholdArrays:
    """Return thresholds as the plain model takes them."""
    return reference.ThresholdArrays(**{name: limit.numpy() for name, limit in thresholds.given().items()})


@cache
def plain_result(name: str) -> reference.Result:
    """Run the plain model of that name in CONFIGS on `tiny_ids()` at busy thresholds; shared."""
    return judge(tiny_model(name), tiny_ids(), busy_thresholds(CONFIGS[name]))


def decisions(out: ModelOutput) -> dict[str, torch.Tensor]:
    """Return the decisions of torch in the shapes of the graph: (L, B, T, E), (L, B, T, H), (L, B, T) and (B, T).

    As in the graph, `selected_heads` and `windows` are there only if the model has them.
    """
    shape = out.exit_layer.shape
    runs = [layer.runs.view(shape) for layer in out.routing]
    experts = [
        layer.routes.selected_experts.view(*shape, -1) if layer.routes else layer.runs.view(*shape, 1)
        for layer in out.routing
    ]
    experts = [F.pad(one, (0, max(each.shape[-1] for each in experts) - one.shape[-1])) for one in experts]
    found = {"selected_experts": torch.stack(experts), "layers_run": torch.stack(runs), "exit_layer": out.exit_layer}
    zero = [layer.routes.zero.selected if layer.routes and layer.routes.zero else None for layer in out.routing]
    if any(one is not None for one in zero):
        nothing = torch.zeros_like(next(one for one in zero if one is not None))
        found["zero_experts"] = torch.stack([(nothing if one is None else one).view(*shape, -1) for one in zero])
    if any(layer.heads for layer in out.routing):
        number = next(layer.heads.selected_heads.shape[-1] for layer in out.routing if layer.heads)
        heads = [
            layer.heads.selected_heads if layer.heads else torch.zeros(len(layer.runs), number, dtype=torch.bool)
            for layer in out.routing
        ]
        found["selected_heads"] = torch.stack([one.view(*shape, -1) for one in heads])
    if any(layer.windows for layer in out.routing):
        sizes = [
            torch.zeros_like(layer.runs).long() if layer.windows is None else layer.windows.sizes
            for layer in out.routing
        ]
        found["windows"] = torch.stack([size.view(shape) for size in sizes])
    return found
