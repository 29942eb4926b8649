"""Cures: the meaning of an alarm, and settings that correct its cause in this run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..config.run_config import RunConfig
from .alarms import Alarm

Settings = dict[str, Any]
"""Dotted key -> value, as `--set` takes them."""


class Cure(NamedTuple):
    """Advice after an alarm: its meaning, and settings that cure it."""

    meaning: str
    settings: Settings


def cure_of(alarm: Alarm, config: RunConfig) -> Cure:
    """Return the cure of an alarm in a run with this config.

    A cure changes the current value, so a cure that is typed twice goes further the second time. No cure needs another
    model, so `--resume --override-resume` accepts each.
    """
    kind, side = alarm.figure.partition("/")[0], "above" if alarm.above else "below"
    meaning, settings = CURES[kind, side]
    return Cure(meaning, settings(config, alarm.layer))


def slower(config: RunConfig, layer: str) -> Settings:
    """Let the monitor lower the rate of the layer; if it already does, halve the rates."""
    return {"monitor.act": "lr"} if config.monitor.act != "lr" else rates(config, layer, 0.5)


def faster(config: RunConfig, layer: str) -> Settings:
    """Triple the rates of the layer."""
    return rates(config, layer, 3.0)


def rates(config: RunConfig, layer: str, factor: float) -> Settings:
    """Multiply by `factor` the peak rates that move a layer (`layers.N`, `embedding`, `head` or `rest`)."""
    optimizer = config.optimizer
    of_matrices = "adamw_matrix_lr" if optimizer.kind == "adamw" else "lr"
    names = [of_matrices, "adamw_lr"] if layer.startswith("layers.") else ["adamw_lr"]
    return {f"optimizer.{name}": rounded(getattr(optimizer, name) * factor) for name in names}


def raise_loss(name: str, factor: float, least: float) -> Callable[[RunConfig, str], Settings]:
    """Multiply the weight of a loss by `factor`, to at least `least`."""
    return lambda config, _: {f"losses.{name}": rounded(max(getattr(config.losses, name) * factor, least))}


def rounded(value: float) -> float:
    """Round to two digits, so that a command stays short."""
    return float(f"{value:.2g}")


CURES: Mapping[tuple[str, str], tuple[str, Callable[[RunConfig, str], Settings]]] = {
    ("grad_norm", "above"): ("the gradient of this layer is far too large", slower),
    ("grad_norm", "below"): ("hardly any gradient reaches this layer", faster),
    ("update_ratio", "above"): ("each step changes too much of this layer", slower),
    ("update_ratio", "below"): ("this layer hardly learns", faster),
    ("activation_rms", "above"): ("the residual stream after this layer is far too large", slower),
    ("activation_rms", "below"): ("the residual stream after this layer has almost vanished", faster),
    ("router_entropy", "below"): (
        "almost all tokens go to the same few experts",
        raise_loss("load_balancing_loss", 4, 0.1),
    ),
    ("router_load", "below"): ("an expert of this layer is hardly used", raise_loss("load_balancing_loss", 4, 0.1)),
    ("router_token_entropy", "below"): (
        "this router is so sure of every token that it no longer learns",
        raise_loss("router_z_loss", 10, 1e-3),
    ),
    ("head_router_entropy", "below"): (
        "almost all tokens use the same few heads",
        raise_loss("head_balancing_loss", 4, 0.1),
    ),
    ("head_router_load", "below"): (
        "an attention head of this layer is hardly used",
        raise_loss("head_balancing_loss", 4, 0.1),
    ),
    ("head_router_token_entropy", "below"): (
        "this router of heads is so sure of every token that it no longer learns",
        raise_loss("head_z_loss", 10, 1e-2),
    ),
    ("depth_router_entropy", "below"): (
        "the depth router of this layer gives almost all tokens the same score",
        raise_loss("depth_z_loss", 10, 1e-2),
    ),
    ("depth_router_token_entropy", "below"): (
        "the depth router of this layer is so sure of every token that it no longer learns",
        raise_loss("depth_z_loss", 10, 1e-2),
    ),
}
"""(kind of figure, side of its band) -> its meaning, and the settings for a config and a layer."""
