"""Trained mixtures of other programs: at the top of the dial our layer is theirs, and never uses more experts than k.

D width, E experts, F hidden width of one expert.
"""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from support.models import variant
from torch import Tensor, nn

from adaptive_lm.train.model.experts.moe import MoE

pytest.importorskip("transformers")
D, E, F, SHARED, TOKENS = 32, 12, 24, 40, 50
FIXED = {"num_experts": E, "expert_dim": F, "controller": "fixed", "router_top_p": 1.0}
SIZES = {"hidden_size": D, "hidden_act": "silu"}
FAMILIES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "mixtral": (
        "mixtral.modeling_mixtral.MixtralSparseMoeBlock",
        "mixtral.configuration_mixtral.MixtralConfig",
        {"num_local_experts": E, "num_experts_per_tok": 2, "intermediate_size": F},
        {"most_experts": 2, "experts_per_token": 2},
    ),
    "olmoe": (
        "olmoe.modeling_olmoe.OlmoeSparseMoeBlock",
        "olmoe.configuration_olmoe.OlmoeConfig",
        {"num_experts": E, "num_experts_per_tok": 4, "intermediate_size": F, "norm_topk_prob": False},
        {"most_experts": 4, "renormalize": False},
    ),
    "qwen3_moe": (
        "qwen3_moe.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock",
        "qwen3_moe.configuration_qwen3_moe.Qwen3MoeConfig",
        {"num_experts": E, "num_experts_per_tok": 3, "moe_intermediate_size": F, "norm_topk_prob": True},
        {"most_experts": 3},
    ),
    "qwen2_moe": (
        "qwen2_moe.modeling_qwen2_moe.Qwen2MoeSparseMoeBlock",
        "qwen2_moe.configuration_qwen2_moe.Qwen2MoeConfig",
        {
            "num_experts": E, "num_experts_per_tok": 4, "moe_intermediate_size": F, "norm_topk_prob": False,
            "shared_expert_intermediate_size": SHARED,
        },
        {"most_experts": 4, "renormalize": False, "shared_expert_dim": SHARED, "shared_gate": True},
    ),
    "deepseek_v3": (
        "deepseek_v3.modeling_deepseek_v3.DeepseekV3MoE",
        "deepseek_v3.configuration_deepseek_v3.DeepseekV3Config",
        {
            "n_routed_experts": E, "num_experts_per_tok": 5, "moe_intermediate_size": F, "norm_topk_prob": True,
            "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "n_shared_experts": 2,
        },
        {"most_experts": 5, "shared_expert_dim": 2 * F, "score": "sigmoid", "selection_bias": True},
    ),
}  # fmt: skip


def load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(f"transformers.models.{module}"), name)


def foreign_block(family: str) -> nn.Module:
    """Return their block with random weights; its biases of the choice change some choices."""
    block_name, config_name, fields, _ = FAMILIES[family]
    config = load(config_name)(**SIZES, **fields)
    config._attn_implementation = config._experts_implementation = "eager"
    block: nn.Module = load(block_name)(config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            scale = 0.1 if "bias" in name else tensor.shape[-1] ** -0.5
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    return block.eval()


def as_ours(family: str, block: nn.Module) -> MoE:
    """Return our layer with their weights, by the names of a transformers 5 checkpoint in memory."""
    moe = MoE(variant(ffn={**FIXED, **FAMILIES[family][3]}, dim=D))
    theirs: dict[str, Tensor] = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    ours = {
        "router.weight": theirs["gate.weight"],
        "gate_up": theirs["experts.gate_up_proj"].mT,
        "down": theirs["experts.down_proj"].mT,
    }
    if "gate.e_score_correction_bias" in theirs:
        ours["router.selection_bias"] = theirs["gate.e_score_correction_bias"]
    for shared in ("shared_expert", "shared_experts"):
        if f"{shared}.down_proj.weight" in theirs:
            ours["shared.gate_up.weight"] = torch.cat([theirs[f"{shared}.{x}_proj.weight"] for x in ("gate", "up")])
            ours["shared.down.weight"] = theirs[f"{shared}.down_proj.weight"]
    if "shared_expert_gate.weight" in theirs:
        ours["shared_gate.weight"] = theirs["shared_expert_gate.weight"]
    state = moe.state_dict() | ours
    assert {key.split(".")[0] for key in state} == {key.split(".")[0] for key in ours}
    moe.load_state_dict(state)
    return moe.eval()


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, MoE]:
    block = foreign_block(request.param)
    return block, as_ours(request.param, block)


def inputs(tokens: int = TOKENS) -> Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def run(moe: MoE, x: Tensor, top_p: float = 1.0, ratio: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the outputs (N, D) and how many experts each token used, (N,)."""
    out, routes = moe(x, torch.ones(len(x), dtype=torch.bool), torch.tensor(top_p), torch.tensor(ratio))
    return out, routes.selected_experts.sum(-1)


def test_at_the_top_of_the_dial_a_layer_is_theirs(pair: tuple[nn.Module, MoE]) -> None:
    block, moe = pair
    with torch.no_grad():
        theirs = block(inputs()[None])[0]
    ours, used = run(moe, inputs())
    assert (used == moe.router.config.most_experts).all()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.std()) + 1e-6)


def test_below_the_top_each_rule_only_leaves_experts_out(pair: tuple[nn.Module, MoE]) -> None:
    """Fewer by either rule, one at the least, and never one that the trained model would not choose."""
    _, moe = pair
    x = inputs()
    every = torch.ones(len(x), dtype=torch.bool)
    with torch.no_grad():
        trained = moe(x, every, torch.tensor(1.0), torch.tensor(0.0))[1].selected_experts
        before = trained.sum(-1)
        for top_p, ratio in ((0.9, 0.0), (0.7, 0.0), (0.3, 0.0), (1e-6, 0.0)):
            chosen = moe(x, every, torch.tensor(top_p), torch.tensor(ratio))[1].selected_experts
            assert (chosen <= trained).all()
            assert (chosen.sum(-1) <= before).all()
            before = chosen.sum(-1)
        assert (before == 1).all()
        before = trained.sum(-1)
        for ratio in (0.1, 0.5, 0.9, 1.0):
            chosen = moe(x, every, torch.tensor(1.0), torch.tensor(ratio))[1].selected_experts
            assert (chosen <= trained).all()
            assert (chosen.sum(-1) <= before).all()
            before = chosen.sum(-1)
    assert before.min() == 1
    assert float(before.float().mean()) < float(trained.sum(-1).float().mean())


def test_the_weights_are_those_of_the_experts_kept() -> None:
    """Renormalised they add up to 1 at each level; raw they are the scores of the softmax over all experts."""
    for family, renormalized in (("mixtral", True), ("olmoe", False)):
        moe = as_ours(family, foreign_block(family))
        for ratio in (0.0, 0.6):
            with torch.no_grad():
                routes = moe.router(inputs(), torch.tensor(1.0), torch.tensor(ratio))
            kept = torch.where(routes.selected_experts, routes.router_probs, 0.0)
            expected = kept / kept.sum(-1, keepdim=True) if renormalized else kept
            np.testing.assert_allclose(routes.routing_weights.numpy(), expected.numpy(), rtol=1e-6)
