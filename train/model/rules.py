"""What must hold between the fields of a model's config; each breach says the field, the value and the rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .config import ModelConfig

Kind = TypeVar("Kind", str, int)


def fit_depth(config: ModelConfig) -> None:
    depth, layers = config.depth, config.num_layers
    if depth.layers_share < 1.0 and layers < 3:
        raise ValueError(
            f"layers_share is {depth.layers_share} but num_layers is {layers}: the first and the "
            "last block always run, so a depth router needs at least 3; or set layers_share to 1"
        )
    for layer in depth.exit_layers:
        if not 0 <= layer < layers - 1:
            raise ValueError(f"exit_layers names layer {layer}; an exit needs 0 <= layer < {layers - 1}")
    if list(depth.exit_layers) != sorted(set(depth.exit_layers)):
        raise ValueError(f"exit_layers must rise without repeats, found {list(depth.exit_layers)}")


def fit_attention(config: ModelConfig) -> None:
    attention, layers = config.attention, range(config.num_layers)
    _one_a_layer("attention.positions", attention.positions, config.num_layers)
    _one_a_layer("attention.window", attention.window, config.num_layers)
    kinds = {config.positions_of(layer) for layer in layers}
    if "rope" in kinds and config.width_of_head % 2:
        raise ValueError(f"heads are {config.width_of_head} wide; rotary positions need an even width")
    if attention.window_kind != "fixed" and not config.has_windows:
        raise ValueError(
            f"attention.window_kind is {attention.window_kind} but attention.window is 0: set the most tokens to see"
        )
    for layer in layers:
        window = config.window_of(layer)
        if window < 0:
            raise ValueError(f"attention.window of layer {layer} is {window}; expected 0 (none) or more")
        if window and attention.window_kind != "fixed" and window < attention.window_least:
            raise ValueError(
                f"attention.window of layer {layer} is {window}, below attention.window_least "
                f"({attention.window_least}): a window adapts between the two"
            )
        if window and config.positions_of(layer) == "cope" and window < attention.max_positions:
            raise ValueError(
                f"attention.window of layer {layer} is {window}, shorter than its attention.max_positions "
                f"({attention.max_positions}): positions beyond the window are never reached; lower max_positions"
            )


def fit_heads(config: ModelConfig) -> None:
    heads, number = config.heads, config.num_heads
    if heads.routing in ("all", "top_k"):
        heads.refuse_control(f"heads.routing {heads.routing} has no threshold", "heads.")
    if heads.routing == "all":
        fields = ("shared_heads", "heads_per_token", "least_heads", "most_heads")
        given = [name for name in fields if getattr(heads, name) != type(heads).model_fields[name].default]
        if given:
            raise ValueError(f"heads.{given[0]} is set but heads.routing is all: choose top_k, top_p or adaptive")
        return
    wanted, least, most = config.heads_per_token, config.least_heads, config.most_heads
    if heads.routing == "adaptive":
        if heads.shared_heads:
            raise ValueError(f"heads.shared_heads is {heads.shared_heads}, but adaptive heads share none: set it to 0")
        if not least <= most <= number:
            raise ValueError(
                f"heads.least_heads is {least} and heads.most_heads {most}; expected "
                f"least_heads <= most_heads <= num_heads ({number})"
            )
        if not least <= wanted <= most:
            raise ValueError(
                f"heads.heads_per_token is {wanted}; expected {least} to {most}, least_heads to most_heads"
            )
        return
    if heads.most_heads is not None or heads.least_heads != 1:
        raise ValueError(f"heads.least_heads and heads.most_heads are for adaptive heads, not for {heads.routing}")
    if heads.shared_heads >= number:
        raise ValueError(f"heads.shared_heads is {heads.shared_heads} of num_heads {number}: none is left to route")
    if not heads.shared_heads + 1 <= wanted <= number:
        raise ValueError(
            f"heads.heads_per_token is {wanted}; expected {heads.shared_heads + 1} to {number}: the shared heads, at "
            "least one routed head, at most num_heads"
        )
    if heads.routing == "top_k" and wanted != int(wanted):
        raise ValueError(
            f"top_k needs a whole heads.heads_per_token, found {wanted}: say {round(wanted)}, or use top_p"
        )


def _one_a_layer(name: str, given: Kind | Sequence[Kind], layers: int) -> None:
    if not isinstance(given, (str, int)) and len(given) != layers:
        raise ValueError(f"{name} lists {len(given)} layers, num_layers is {layers}: give one for each, or one for all")
