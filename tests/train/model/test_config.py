"""A config that cannot be built says which field, which value, and which rule."""

from typing import Any

import pytest
from pydantic import ValidationError
from tiny_models import CONFIGS, variant

from adaptive_lm.train.model import LossConfig, ModelConfig, Transformer

WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"num_heads": 4, "num_kv_heads": 3}, ["num_heads (4)", "multiple of num_kv_heads (3)"]),
    ({"dim": 30}, ["dim (30)", "multiple of num_heads (4)", "head_dim"]),
    ({"head_dim": 7}, ["7 wide", "even"]),
    ({"dim": 4}, ["dim", "greater than or equal to 8", "4"]),
    ({"norm_eps": 0.0}, ["norm_eps", "greater than 0"]),
    ({"ffn": {"num_experts": 1}}, ["ffn.num_experts", "greater than or equal to 2", "1"]),
    ({"ffn": {"num_experts": 4, "experts_per_token": 5}}, ["experts_per_token is 5", "num_experts is only 4"]),
    ({"ffn": {"experts_per_token": 0.5}}, ["experts_per_token", "greater than or equal to 1", "0.5"]),
    ({"ffn": {"routing": "top_k", "experts_per_token": 1.6}}, ["top_k", "whole experts_per_token", "1.6", "top_p"]),
    ({"ffn": {"routing": "top_q"}}, ["ffn.routing", "top_p", "top_k", "dense", "top_q"]),
    ({"ffn": {"router_top_p": 1.5}}, ["router_top_p", "less than or equal to 1", "1.5"]),
    ({"ffn": {"ema": 1.0}}, ["ema", "less than 1"]),
    ({"depth": {"layers_share": 0.0}}, ["layers_share", "greater than 0"]),
    ({"num_layers": 2, "depth": {"layers_share": 0.5}}, ["layers_share is 0.5", "num_layers is 2", "at least 3"]),
    ({"depth": {"exit_layers": (3,)}}, ["exit_layers", "layer 3", "layer < 3"]),
    ({"depth": {"exit_layers": (-1,)}}, ["exit_layers", "layer -1"]),
    ({"num_layers": 1, "depth": {"exit_layers": (0,)}}, ["exit_layers", "layer 0"]),
    ({"depth": {"exit_layers": (2, 1)}}, ["exit_layers", "rise", "[2, 1]"]),
    ({"depth": {"exit_layers": (1, 1)}}, ["exit_layers", "repeats", "[1, 1]"]),
    ({"depth": {"skipped_kv": "some"}}, ["skipped_kv", "none", "project", "some"]),
    ({"num_layer": 4}, ["num_layer", "not permitted"]),
    ({"ffn": {"num_expert": 4}}, ["ffn.num_expert", "not permitted"]),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_a_wrong_config_says_field_value_and_rule(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as raised:
        ModelConfig(**fields)
    for word in words:
        assert word in str(raised.value)


def test_a_negative_loss_weight_is_refused() -> None:
    with pytest.raises(ValidationError, match="router_z_loss"):
        LossConfig(router_z_loss=-1)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        variant().dim = 64  # type: ignore[misc]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_being_written_and_read(name: str) -> None:
    assert ModelConfig.model_validate_json(CONFIGS[name].model_dump_json()) == CONFIGS[name]


def test_the_first_and_the_last_block_always_run() -> None:
    config = CONFIGS["routers_none"]
    assert [config.has_depth_router(layer) for layer in range(4)] == [False, True, True, False]
    assert [layer.depth_router is not None for layer in Transformer(config).layers] == [False, True, True, False]
    assert not any(CONFIGS["exits_none"].has_depth_router(layer) for layer in range(4))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_holds_what_its_config_says(name: str) -> None:
    """One weight, one name: what the exported graph will look for, and nothing else."""
    config = CONFIGS[name]
    expected = {"embedding.weight": (config.vocab_size, config.dim), "norm.weight": (config.dim,)}
    expected["head.weight"] = expected["embedding.weight"]
    heads, kv_heads, width, dim, ffn = (
        config.num_heads,
        config.num_kv_heads,
        config.width_of_head,
        config.dim,
        config.ffn,
    )
    for layer in range(config.num_layers):
        block: dict[str, tuple[int, ...]] = {
            "attention_norm.weight": (dim,),
            "attention.q.weight": (heads * width, dim),
            "attention.kv.weight": (2 * kv_heads * width, dim),
            "attention.o.weight": (dim, heads * width),
            "attention.q_norm.weight": (width,),
            "attention.k_norm.weight": (width,),
            "ffn_norm.weight": (dim,),
        }
        if ffn.routing == "dense":
            block |= {"ffn.gate_up.weight": (2 * ffn.dim, dim), "ffn.down.weight": (dim, ffn.dim)}
        else:
            block |= {
                "moe.router.weight": (ffn.num_experts, dim),
                "moe.router.controller.table": (33,),
                "moe.router.controller.num_updates": (),
                "moe.gate_up": (ffn.num_experts, dim, 2 * ffn.expert_dim),
                "moe.down": (ffn.num_experts, ffn.expert_dim, dim),
            }
            if ffn.shared_expert_dim:
                block["moe.shared.gate_up.weight"] = (2 * ffn.shared_expert_dim, dim)
                block["moe.shared.down.weight"] = (dim, ffn.shared_expert_dim)
        if config.has_depth_router(layer):
            block |= {
                "depth_router.weight": (dim,),
                "depth_router.bias": (),
                "depth_router.controller.table": (33,),
                "depth_router.controller.num_updates": (),
            }
        expected |= {f"layers.{layer}.{key}": shape for key, shape in block.items()}
    assert {key: tuple(value.shape) for key, value in Transformer(config).state_dict().items()} == expected
