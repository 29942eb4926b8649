"""Rules between the sections of a model's config, each of which raises ValueError."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .rope import RopeConfig

if TYPE_CHECKING:
    from .model import ModelConfig


def fit_depth(config: "ModelConfig") -> None:
    """Raise ValueError where the depth section does not fit the number of layers."""
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


def fit_attention(config: "ModelConfig") -> None:
    """Raise ValueError where positions or windows do not fit the model or each other."""
    attention, layers = config.attention, range(config.num_layers)
    one_per_layer("attention.positions", attention.positions, config.num_layers)
    one_per_layer("attention.window", attention.window, config.num_layers)
    kinds = {config.positions_of(layer) for layer in layers}
    if "learned" in kinds and not config.has_learned_positions:
        raise ValueError(
            f"attention.positions lists {', '.join(attention.positions)}, but learned positions are added to the "
            "embedding, for all layers: set attention.positions to learned, or list rope, cope and none"
        )
    if not isinstance(attention.rope, RopeConfig):
        one_per_layer("attention.rope", attention.rope, config.num_layers)
    for rope in config.ropes:
        rope.fit(config.resolved_head_dim)
    if attention.qk_norm == "full" and config.heads.routing != "all":
        raise ValueError(
            "attention.qk_norm is full, which needs all heads of a token, but heads.routing is "
            f"{config.heads.routing}: set attention.qk_norm to head or none, or heads.routing to all"
        )
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


def fit_heads(config: "ModelConfig") -> None:
    """Raise ValueError where the numbers of heads do not fit each other or the kind of routing."""
    heads, number = config.heads, config.num_heads
    if heads.routing in ("all", "top_k"):
        heads.refuse_control(f"heads.routing {heads.routing} has no threshold", "heads.")
    if heads.routing == "all":
        fields = ("shared_heads", "heads_per_token", "least_heads", "most_heads")
        changed = [name for name in fields if getattr(heads, name) != type(heads).model_fields[name].default]
        if changed:
            raise ValueError(f"heads.{changed[0]} is set but heads.routing is all: choose top_k, top_p or adaptive")
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
            f"top_k needs a whole heads.heads_per_token, found {wanted}: set it to {round(wanted)}, or use top_p"
        )


def fit_ffn(config: "ModelConfig") -> None:
    """Raise ValueError where the widths or the kinds of FFN do not fit the number of layers."""
    ffn, layers = config.ffn, config.num_layers
    one_per_layer("ffn.dim", ffn.dim, layers)
    for layer in ffn.dense_layers:
        if not 0 <= layer < layers:
            raise ValueError(f"ffn.dense_layers names layer {layer}; expected 0 to {layers - 1}")
    if list(ffn.dense_layers) != sorted(set(ffn.dense_layers)):
        raise ValueError(f"ffn.dense_layers must rise without repeats, found {list(ffn.dense_layers)}")
    if len(ffn.dense_layers) == layers:
        raise ValueError("ffn.dense_layers names every layer, so no experts are left: set ffn.routing to dense")


def fit_recursion(config: "ModelConfig") -> None:
    """Raise ValueError where the layers to repeat do not exist, or differ from their repetitions."""
    recursion, layers = config.recursion, config.num_layers
    if recursion.times == 1:
        return
    end = recursion.first + recursion.layers * recursion.times
    if end > layers - 1:
        raise ValueError(
            f"recursion runs layers {recursion.first} to {end - 1}, num_layers is {layers}: num_layers counts every "
            f"repetition, and the last layer is none; set num_layers to at least {end + 1}"
        )
    for layer in recursion.repeated:
        source = recursion.source_of(layer)
        for name, of in (
            ("mixers", config.mixer_of),
            ("attention.positions", config.positions_of),
            ("attention.rope", config.rope_of),
            ("attention.window", config.window_of),
            ("ffn.dense_layers", config.is_dense),
            ("ffn.dim", config.ffn_dim),
        ):
            if of(layer) != of(source):
                raise ValueError(
                    f"layer {layer} repeats layer {source}, but their {name} differ ({of(layer)} and {of(source)}): "
                    "give both the same"
                )


def one_per_layer(name: str, values: str | int | Sequence[object], layers: int) -> None:
    """Raise ValueError where a list has not one value per layer."""
    if not isinstance(values, (str, int)) and len(values) != layers:
        raise ValueError(
            f"{name} lists {len(values)} layers, num_layers is {layers}: give one for each, or one for all"
        )
