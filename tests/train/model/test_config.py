"""The error of an invalid model config names the field, the value and the rule."""

from typing import Any

import pytest
from pydantic import ValidationError
from support.models import CONFIGS, variant

from adaptive_lm.train.model import LossConfig, ModelConfig, Transformer
from adaptive_lm.train.model.config.thresholds import Controlled

YARN = {"kind": "yarn", "factor": 2, "original_context": 16}
LLAMA3 = {**YARN, "kind": "llama3"}
LONGROPE = {**YARN, "kind": "longrope", "short_factors": [1, 1, 1, 1], "long_factors": [1, 1, 1]}
WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"num_heads": 4, "num_kv_heads": 3}, ["num_heads (4)", "multiple of num_kv_heads (3)"]),
    ({"dim": 30}, ["dim (30)", "multiple of num_heads (4)", "head_dim"]),
    ({"head_dim": 7}, ["7 wide", "even"]),
    ({"dim": 4}, ["dim", "greater than or equal to 8", "4"]),
    ({"norm_eps": 0.0}, ["norm_eps", "greater than 0"]),
    ({"ffn": {"num_experts": 1}}, ["ffn.num_experts", "greater than or equal to 2", "1"]),
    ({"ffn": {"num_experts": 4, "experts_per_token": 5}}, ["experts_per_token is 5", "num_experts is only 4"]),
    ({"ffn": {"experts_per_token": 0.5}}, ["experts_per_token is 0.5", "at least one expert", "zero_experts", "relu"]),
    ({"ffn": {"experts_per_token": 0}}, ["experts_per_token", "greater than 0"]),
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
    # forms of other mixtures
    ({"ffn": {"num_experts": 4, "most_experts": 5}}, ["most_experts is 5", "num_experts is only 4"]),
    ({"ffn": {"most_experts": 1}}, ["experts_per_token is 1.6", "most_experts is only 1"]),
    ({"ffn": {"most_experts": 0}}, ["most_experts", "greater than or equal to 1"]),
    ({"ffn": {"routing": "top_k", "experts_per_token": 2, "most_experts": 2}}, ["most_experts is set", "leave"]),
    ({"ffn": {"routing": "dense", "score": "sigmoid"}}, ["score is set", "routing is dense", "leave score out"]),
    ({"ffn": {"routing": "dense", "dense_layers": (0,)}}, ["dense_layers is set", "routing is dense"]),
    ({"ffn": {"shared_gate": True}}, ["shared_gate is true", "shared_expert_dim"]),
    ({"ffn": {"dense_layers": (4,)}}, ["ffn.dense_layers names layer 4", "0 to 3"]),
    ({"ffn": {"dense_layers": (1, 0)}}, ["ffn.dense_layers must rise", "[1, 0]"]),
    ({"ffn": {"dense_layers": (0, 1, 2, 3)}}, ["names every layer", "ffn.routing to dense"]),
    ({"ffn": {"dim": (8, 8)}}, ["ffn.dim lists 2 layers", "num_layers is 4"]),
    ({"ffn": {"dim": (8, 0, 8, 8)}}, ["dim holds 0", "at least 1"]),
    ({"ffn": {"activation": "swish"}}, ["ffn.activation", "silu", "gelu_tanh", "swish"]),
    # mixers
    ({"mixers": "mamba"}, ["mixers", "mamba2", "rwkv7", "retnet", "gated_delta", "mamba"]),
    ({"mixers": ("retnet", "attention")}, ["mixers lists 2 layers", "num_layers is 4", "one for all"]),
    ({"recurrence": {"conv": 3}}, ["recurrence.conv is set", "every layer has attention", "mixers to mamba2"]),
    ({"mixers": "mamba2", "recurrence": {"conv": 9}}, ["recurrence.conv", "less than or equal to 8", "9"]),
    ({"mixers": "mamba2", "recurrence": {"chunk": 0}}, ["recurrence.chunk", "greater than or equal to 1"]),
    ({"mixers": "retnet", "recurrence": {"head_dim": 16}}, ["head_dim is 16", "32 wide", "retnet", "to none"]),
    ({"mixers": "retnet", "attention": {"window": 8}}, ["attention.window is 8", "no layer has attention"]),
    (
        {"mixers": ("retnet", "attention") * 2, "attention": {"window": (8, 8, 0, 0)}},
        ["attention.window of layer 0 is 8", "retnet", "set it to 0"],
    ),
    ({"mixers": "mamba2", "heads": {"routing": "top_p"}}, ["heads.routing is top_p", "no layer has attention"]),
    # positions
    ({"attention": {"positions": "alibi"}}, ["attention.positions", "rope", "cope", "none", "alibi"]),
    ({"attention": {"positions": ("rope", "cope")}}, ["attention.positions", "lists 2 layers", "num_layers is 4"]),
    ({"attention": {"positions": "cope", "max_positions": 1}}, ["max_positions", "greater than or equal to 2", "1"]),
    ({"attention": {"rope": {"theta": 0.0}}}, ["attention.rope", "theta", "greater than 0"]),
    ({"attention": {"rope": [{}, {}]}}, ["attention.rope", "lists 2 layers", "num_layers is 4"]),
    ({"head_dim": 8, "attention": {"rope": {"share": 0.4}}}, ["share 0.4 of 8 is 3", "even", "attention.rope.share"]),
    ({"head_dim": 8, "attention": {"rope": {"share": 0.1}}}, ["share 0.1 of 8 is 0", "at least 2"]),
    ({"attention": {"rope": {"scaling": {"kind": "linear"}}}}, ["kind linear needs factor"]),
    ({"attention": {"rope": {"scaling": {"kind": "linear", "factor": 0.5}}}}, ["factor", "greater than or equal to 1"]),
    ({"attention": {"rope": {"scaling": {"kind": "llama3", "factor": 8}}}}, ["kind llama3 needs original_context"]),
    ({"attention": {"rope": {"scaling": {"kind": "ntk"}}}}, ["scaling.kind", "llama3", "longrope", "ntk"]),
    ({"attention": {"rope": {"scaling": {"factor": 2}}}}, ["factor is set", "kind none", "linear", "leave it out"]),
    (
        {"attention": {"rope": {"scaling": {**YARN, "low_frequency_factor": 2}}}},
        ["low_frequency_factor is set", "kind yarn does not read it", "llama3 would"],
    ),
    ({"attention": {"rope": {"scaling": {**YARN, "beta_slow": 40}}}}, ["beta_slow is 40", "less than beta_fast (32"]),
    ({"attention": {"rope": {"theta": 1, "scaling": YARN}}}, ["theta is 1.0", "yarn", "greater than 1"]),
    (
        {"attention": {"rope": {"scaling": {**LLAMA3, "low_frequency_factor": 4}}}},
        ["low_frequency_factor is 4", "less than high_frequency_factor (4"],
    ),
    ({"head_dim": 8, "attention": {"rope": {"scaling": LONGROPE}}}, ["long_factors lists 3 numbers", "expected 4"]),
    (
        {"attention": {"rope": {"scaling": {**LONGROPE, "short_factors": []}}}},
        ["kind longrope needs short_factors"],
    ),
    ({"rope_theta": 9.0, "attention": {"rope": {"theta": 8.0}}}, ["rope_theta is attention.rope.theta now"]),
    # queries and keys
    ({"attention": {"qk_norm": "all"}}, ["attention.qk_norm", "none", "head", "full", "all"]),
    (
        {"attention": {"qk_norm": "full"}, "heads": {"routing": "top_k"}},
        ["attention.qk_norm is full", "heads.routing is top_k", "head or none"],
    ),
    ({"attention": {"softcap": -1.0}}, ["attention.softcap", "greater than or equal to 0"]),
    # windows
    (
        {"attention": {"positions": "cope", "window": 32}},
        ["attention.window", "layer 0 is 32", "max_positions (64)", "lower max_positions"],
    ),
    (
        {"attention": {"positions": ("rope", "none", "cope", "rope"), "window": (8, 8, 63, 8)}},
        ["layer 2 is 63", "max_positions (64)"],
    ),
    ({"attention": {"window": (8, 8, 8)}}, ["attention.window", "lists 3 layers", "num_layers is 4"]),
    ({"attention": {"window": -3}}, ["attention.window", "-3", "0 (none) or more"]),
    ({"attention": {"window_kind": "length"}}, ["window_kind is length", "attention.window is 0"]),
    (
        {"attention": {"window_kind": "learned", "window": (0, 32, 8, 32)}},
        ["attention.window of layer 2 is 8", "window_least (16)"],
    ),
    ({"attention": {"window": 32, "window_kind": "tall"}}, ["window_kind", "fixed", "learned", "tall"]),
    ({"attention": {"window_share": 0.0}}, ["window_share", "greater than 0"]),
    ({"attention": {"window_share": 1.5}}, ["window_share", "less than or equal to 1", "1.5"]),
    ({"attention": {"window_factor": 0.5}}, ["window_factor", "greater than or equal to 1", "0.5"]),
    ({"attention": {"window_ramp": 0}}, ["window_ramp", "greater than or equal to 1"]),
    # heads
    ({"heads": {"routing": "some"}}, ["heads.routing", "top_k", "adaptive", "some"]),
    ({"heads": {"shared_heads": 1}}, ["heads.shared_heads is set", "routing is all", "top_p"]),
    ({"heads": {"least_heads": 2}}, ["heads.least_heads is set", "routing is all"]),
    ({"heads": {"heads_per_token": 2}}, ["heads.heads_per_token is set", "routing is all"]),
    ({"heads": {"per_token": True}}, ["heads.per_token is True", "routing all has no threshold"]),
    ({"heads": {"routing": "top_k", "controller": "pi"}}, ["heads.controller is pi", "top_k has no threshold"]),
    ({"heads": {"routing": "top_p", "shared_heads": 4}}, ["shared_heads is 4", "num_heads 4", "none is left"]),
    (
        {"heads": {"routing": "top_p", "shared_heads": 2, "heads_per_token": 2}},
        ["heads_per_token is 2", "expected 3 to 4", "at least one routed head"],
    ),
    ({"heads": {"routing": "top_p", "heads_per_token": 5}}, ["heads_per_token is 5", "expected 1 to 4"]),
    ({"heads": {"routing": "top_k", "heads_per_token": 2.5}}, ["top_k", "whole heads.heads_per_token", "2.5", "top_p"]),
    ({"heads": {"routing": "top_p", "most_heads": 3}}, ["most_heads", "adaptive", "top_p"]),
    ({"heads": {"routing": "top_k", "least_heads": 2}}, ["least_heads", "adaptive", "top_k"]),
    ({"heads": {"routing": "adaptive", "shared_heads": 1}}, ["shared_heads is 1", "adaptive", "set it to 0"]),
    (
        {"heads": {"routing": "adaptive", "least_heads": 3, "most_heads": 2}},
        ["least_heads is 3", "most_heads 2", "least_heads <= most_heads"],
    ),
    ({"heads": {"routing": "adaptive", "most_heads": 5}}, ["most_heads 5", "num_heads (4)"]),
    (
        {"heads": {"routing": "adaptive", "most_heads": 2, "heads_per_token": 3}},
        ["heads_per_token is 3", "expected 1 to 2"],
    ),
    # thresholds
    ({"ffn": {"controller": "fixed", "router_top_p": (0.4, 0.5)}}, ["ffn.router_top_p", "lists 2", "num_layers is 4"]),
    (
        {"depth": {"layers_share": 0.5, "controller": "fixed", "depth_threshold": (0.5,) * 5}},
        ["depth.depth_threshold", "lists 5", "num_layers is 4"],
    ),
    ({"heads": {"routing": "top_p", "head_top_p": (0.5,) * 4}}, ["heads.head_top_p", "quantile", "fixed", "learned"]),
    ({"ffn": {"router_top_p": {"first": 0.3, "last": 0.6}}}, ["ffn.router_top_p", "quantile", "fixed", "learned"]),
    ({"ffn": {"controller": "fixed", "router_top_p": {"first": 0.3, "last": 1.5}}}, ["last", "1.5"]),
    (
        {"ffn": {"controller": "fixed", "router_top_p": (0.4, 0.5, 0.6, 1.2)}},
        ["ffn.router_top_p holds 1.2", "less than or equal to 1"],
    ),
    ({"ffn": {"controller": "fixed", "router_top_p": 0.0}}, ["ffn.router_top_p holds 0.0", "greater than 0"]),
    (
        {"ffn": {"controller": "fixed", "scope": "model"}},
        ["scope is model", "router_top_p is fixed", "set it to pi"],
    ),
    (
        {"ffn": {"controller": "pi", "scope": "model", "router_top_p": (0.4, 0.4, 0.4, 0.5)}},
        ["ffn.router_top_p sets each layer", "scope model", "one number"],
    ),
    ({"ffn": {"controller": "tight"}}, ["ffn.controller", "quantile", "pi", "tight"]),
    ({"ffn": {"routing": "top_k", "experts_per_token": 2, "per_token": True}}, ["per_token is True", "top_k"]),
    ({"ffn": {"routing": "dense", "controller": "pi"}}, ["controller is pi", "dense has no threshold"]),
    ({"ffn": {"per_token": True, "per_token_reach": 0.0}}, ["per_token_reach", "greater than 0"]),
    ({"depth": {"per_token": True}}, ["per_token is True", "layers_share 1 builds no depth router"]),
    # exits
    ({"depth": {"exit_criterion": "margin"}}, ["exit_criterion is margin", "exit_layers is empty"]),
    ({"depth": {"exit_layers": (1,), "exit_criterion": "luck"}}, ["exit_criterion", "top_prob", "router", "luck"]),
    ({"depth": {"layer_dropout": 1.0}}, ["layer_dropout", "less than 1"]),
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


def expected_of_norm(config: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
    """List the tensors of a norm of the hidden state."""
    parts = ("weight", "bias") if config.norm == "layer" else ("weight",)
    return {f"{name}.{part}": (config.dim,) for part in parts}


def expected_of_attention(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """List projections and norms of an attention layer."""
    dim, width, heads, kv_heads = config.dim, config.resolved_head_dim, config.num_heads, config.num_kv_heads
    held: dict[str, tuple[int, ...]] = {
        "attention.q.weight": (heads * width, dim),
        "attention.kv.weight": (2 * kv_heads * width, dim),
        "attention.o.weight": (dim, heads * width),
    }
    if config.attention.qk_norm != "none":
        of_q, of_k = (heads, kv_heads) if config.attention.qk_norm == "full" else (1, 1)
        held |= {"attention.q_norm.weight": (of_q * width,), "attention.k_norm.weight": (of_k * width,)}
    if config.attention.qkv_bias:
        held |= {"attention.q.bias": (heads * width,), "attention.kv.bias": (2 * kv_heads * width,)}
    if config.attention.o_bias:
        held["attention.o.bias"] = (dim,)
    return held


def expected_of_mixer(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """List the tensors of a mixer with a state."""
    dim, heads, width = config.dim, config.num_heads, config.recurrence.head_dim or config.resolved_head_dim
    inner, conv, kind = heads * width, config.recurrence.conv, config.mixer_of(layer)
    held: dict[str, tuple[int, ...]] = {"o.weight": (dim, inner)}
    if kind == "retnet":
        held |= {f"{name}.weight": (inner, dim) for name in ("q", "k", "v", "gate")} | {"decay": (heads,)}
    if kind == "mamba2":
        held |= {"in.weight": (2 * inner + 2 * width + heads, dim), "norm.weight": (inner,)}
        held |= {"conv.weight": (inner + 2 * width, conv), "conv.bias": (inner + 2 * width,)}
        held |= dict.fromkeys(("A_log", "dt_bias", "D"), (heads,))
    if kind == "gated_delta":
        held |= {f"{name}.weight": (inner, dim) for name in ("q", "k", "v", "gate")}
        held |= {f"{name}.weight": (heads, dim) for name in ("a_proj", "b_proj")}
        held |= {"conv.weight": (3 * inner, conv), "norm.weight": (width,), "A_log": (heads,), "dt_bias": (heads,)}
    if kind == "rwkv7":
        held |= {f"{name}.weight": (inner, dim) for name in ("r", "k", "v")}
        held |= {f"mu_{name}": (dim,) for name in ("r", "w", "k", "v", "a", "g")}
        for name in ("w", "a", "g"):
            held |= {
                f"{name}1.weight": (config.recurrence.rank, dim),
                f"{name}2.weight": (inner, config.recurrence.rank),
            }
        held |= dict.fromkeys(("w0", "a0", "k_k", "k_a", "r_k", "norm.weight", "norm.bias"), (inner,))
    return {f"mixer.{name}": shape for name, shape in held.items()}


def expected_of_block(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """List the tensors of one layer by name, with their shapes."""
    ffn, dim = config.ffn, config.dim
    held = expected_of_attention(config) if config.attends(layer) else expected_of_mixer(config, layer)
    for part in ("attention", "ffn"):
        held |= expected_of_norm(config, f"{part}_norm") if config.norm_place in ("pre", "sandwich") else {}
        held |= expected_of_norm(config, f"{part}_post_norm") if config.norm_place in ("post", "sandwich") else {}
    routers: list[tuple[str, Controlled, bool]] = []
    first, both = ("gate_up", 2) if ffn.gated else ("up", 1)

    def dense(name: str, hidden: int) -> dict[str, tuple[int, ...]]:
        matrices = {f"{name}.{first}.weight": (both * hidden, dim), f"{name}.down.weight": (dim, hidden)}
        biases = {f"{name}.{first}.bias": (both * hidden,), f"{name}.down.bias": (dim,)}
        return matrices | biases if ffn.bias else matrices

    if config.is_dense(layer):
        held |= dense("ffn", ffn.dim if isinstance(ffn.dim, int) else ffn.dim[layer])
    else:
        held |= {
            "moe.router.weight": (ffn.num_experts + ffn.zero_experts.total, dim),
            f"moe.{first}": (ffn.num_experts, dim, both * ffn.expert_dim),
            "moe.down": (ffn.num_experts, ffn.expert_dim, dim),
        }
        if ffn.bias:
            held[f"moe.{first}_bias"] = (ffn.num_experts, both * ffn.expert_dim)
            held["moe.down_bias"] = (ffn.num_experts, dim)
        if ffn.router_bias:
            held["moe.router.bias"] = (ffn.num_experts,)
        if ffn.selection_bias:
            held["moe.router.selection_bias"] = (ffn.num_experts,)
        routers.append(("moe.router", ffn, False))
        if ffn.routing == "relu":
            held["moe.router.l1.coefficient"] = ()
        if constants := ffn.zero_experts.constants:
            held |= {f"moe.zero_experts.{part}": (constants, dim) for part in ("mix", "constants")}
        if ffn.shared_expert_dim:
            held |= dense("moe.shared", ffn.shared_expert_dim)
        if ffn.shared_gate:
            held["moe.shared_gate.weight"] = (1, dim)
    if config.heads.routing != "all" and config.attends(layer):
        held["attention.head_router.weight"] = (config.num_heads, dim)
        if config.heads.shared_heads:
            held["attention.head_router.balance"] = (2, dim)
        routers.append(("attention.head_router", config.heads, config.heads.routing == "adaptive"))
    if config.has_depth_router(layer):
        held |= {"depth_router.weight": (dim,), "depth_router.bias": ()}
        routers.append(("depth_router", config.depth, False))
    for router, control, always in routers:
        held |= {f"{router}.controller.table": (33,), f"{router}.controller.num_updates": ()}
        if control.per_token or always:
            held |= {f"{router}.per_token.weight": (dim,), f"{router}.per_token.bias": ()}
        if control.controller == "learned":
            held[f"{router}.level_logit"] = ()
        if control.controller == "pi" and control.scope == "layer":
            held |= {f"{router}.pi.{buffer}": () for buffer in ("level", "error", "num_updates")}
    if config.positions_of(layer) == "cope":
        held["attention.position_embedding"] = (config.attention.max_positions, config.resolved_head_dim)
    if config.window_of(layer) and config.attention.window_kind == "learned":
        held |= {"attention.window_router.weight": (dim,), "attention.window_router.bias": ()}
    if config.window_of(layer) and config.attention.window_kind == "entropy":
        held |= {f"attention.window_controller.{buffer}": () for buffer in ("spread", "window", "num_updates")}
    return held


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_holds_what_its_config_says(name: str) -> None:
    """One weight, one name: exactly the names that the exported graph needs."""
    config = CONFIGS[name]
    expected: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocab_size, config.dim)}
    expected |= {**expected_of_norm(config, "norm"), "head.weight": expected["embedding.weight"]}
    if config.attention.positions == "learned":
        expected["learned_positions"] = (config.context_length, config.dim)
    for layer in range(config.num_layers):
        block = expected_of_block(config, layer)
        if layer in config.recursion.repeated:
            block = {key: shape for key, shape in block.items() if key.startswith("depth_router.")}
        expected |= {f"layers.{layer}.{key}": shape for key, shape in block.items()}
    if config.depth.exit_criterion == "router":
        for layer in config.depth.exit_layers:
            expected |= {f"exit_routers.{layer}.weight": (config.dim,), f"exit_routers.{layer}.bias": ()}
    for kind, section in (("experts", config.ffn), ("heads", config.heads), ("depth", config.depth)):
        if section.scope == "model":
            expected |= {f"pi.{kind}.{buffer}": () for buffer in ("level", "error", "num_updates")}
    assert {key: tuple(value.shape) for key, value in Transformer(config).state_dict().items()} == expected


def test_the_bounds_of_the_heads_follow_their_routing() -> None:
    bounds = {
        name: (config.least_heads, config.heads_per_token, config.most_heads, config.routed_heads)
        for name, config in CONFIGS.items()
        if name in ("top_p", "heads_top_k", "heads_top_p", "heads_shared", "heads_adaptive")
    }
    assert bounds == {
        "top_p": (4, 4.0, 4, 4),
        "heads_top_k": (3, 3, 3, 3),
        "heads_top_p": (1, 2.5, 4, 4),
        "heads_shared": (3, 4.5, 6, 4),
        "heads_adaptive": (1, 2, 3, 4),
    }


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ({"routing": "all"}, 4.0),
        ({"routing": "top_k"}, 3.0),
        ({"routing": "top_p"}, 3.0),
        ({"routing": "adaptive", "least_heads": 2}, 3.0),
    ],
    ids=lambda given: str(given),
)
def test_three_quarters_of_the_heads_run_where_nothing_is_said(heads: dict[str, Any], expected: float) -> None:
    assert variant(heads=heads).heads_per_token == expected
    assert variant(heads={**heads}, num_heads=2, num_kv_heads=1, dim=32).heads_per_token <= 2


def test_a_layer_counts_its_cells_where_some_of_them_skipped_it() -> None:
    """Contextual positions, keys of skipped tokens, and a way to skip the layer: all three."""
    counts = {
        name: [config.counts_cells(layer) for layer in range(4)] for name, config in CONFIGS.items() if "cope" in name
    }
    assert counts["cope"] == counts["cope_none"] == counts["shared_cope"] == [False] * 4
    assert counts["cope_project"] == counts["cope_window_project"] == [False, True, True, True]
    mixed = CONFIGS["everything_project"]
    assert [mixed.counts_cells(layer) for layer in range(4)] == [False, True, False, True]
    routers = variant(attention={"positions": "cope", "max_positions": 4}, depth={"layers_share": 0.5})
    assert [routers.counts_cells(layer) for layer in range(4)] == [False, True, True, False]
