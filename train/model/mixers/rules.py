"""Rules between mixers and the other settings of a model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config.model import ModelConfig


def fit_mixers(config: "ModelConfig") -> None:
    """Raise ValueError where the mixers do not fit the layers, or settings of attention that no layer has."""
    if not config.has_states:
        for name, field in type(config.recurrence).model_fields.items():
            if getattr(config.recurrence, name) != field.default:
                raise ValueError(
                    f"recurrence.{name} is set but every layer has attention: set mixers to mamba2, rwkv7, retnet or "
                    "gated_delta, or to a list with one per layer"
                )
        return
    attention = config.attention
    if isinstance(attention.window, tuple):
        for layer, window in enumerate(attention.window):
            if window and not config.attends(layer):
                raise ValueError(
                    f"attention.window of layer {layer} is {window}, but the mixer of that layer is "
                    f"{config.mixer_of(layer)}, which has no window: set it to 0"
                )
    if not config.has_attention:
        if attention.window:
            raise ValueError(
                f"attention.window is {attention.window} but no layer has attention: set it to 0, or list attention "
                "in mixers"
            )
        if config.heads.routing != "all":
            raise ValueError(
                f"heads.routing is {config.heads.routing} but no layer has attention, whose heads it chooses: set it "
                "to all, or list attention in mixers"
            )


def fit_retnet(config: "ModelConfig") -> None:
    """Raise ValueError where heads of `retnet` are not as wide as the rotary tables that they would use."""
    turning = (config.mixer_of(layer) == "retnet" and config.rope_of(layer) for layer in range(config.num_layers))
    if config.state_head_dim != config.resolved_head_dim and any(turning):
        raise ValueError(
            f"recurrence.head_dim is {config.state_head_dim} and heads of attention are {config.resolved_head_dim} "
            "wide, but retnet rotates its heads by the tables of attention: set recurrence.head_dim to 0, or "
            "attention.positions to none"
        )
