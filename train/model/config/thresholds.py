"""Settings of a routing threshold, shared by experts, heads and depth."""

from typing import Literal

from pydantic import Field

from ...system.section import Section


class Line(Section):
    """Thresholds in a straight line from the first layer to the last."""

    first: float = Field(ge=0, le=1)
    """Threshold of the first layer, 0 to 1."""
    last: float = Field(ge=0, le=1)
    """Threshold of the last layer, 0 to 1."""


Level = float | tuple[float, ...] | Line
"""The threshold of every layer: one number for all, one per layer, or a line."""


def levels(level: Level, layers: int) -> list[float]:
    """Return the threshold of each layer."""
    if isinstance(level, Line):
        return [level.first + (level.last - level.first) * layer / max(layers - 1, 1) for layer in range(layers)]
    return list(level) if isinstance(level, tuple) else [level] * layers


class Controlled(Section):
    """The control of a routing threshold.

    Each layer has a level, the threshold that its tokens share; `per_token` moves it for each token.
    """

    controller: Literal["quantile", "fixed", "learned", "pi"] = "quantile"
    """Method that sets the level. `quantile` and `pi` hold an average that you ask for: `quantile` by a quantile of the
    scores seen, whose table becomes the dial; `pi` by a proportional-integral controller (DTop-p, arXiv 2512.13996).
    `fixed` is the number in the config. `learned` follows its gradient, under `losses.threshold_loss`."""
    scope: Literal["layer", "model"] = "layer"
    """Under `pi`: hold the average of each layer, or of all layers together by one level."""
    pi_gains: tuple[float, float] = (0.05, 0.01)
    """Proportional and integral gain of `pi`: change of the level per step and per unit (expert, head or layer) of
    error."""
    ema: float = Field(0.7, ge=0, lt=1)
    """Decay per step of the quantile table, 0 to below 1. A slow table lags behind a router that sharpens."""
    per_token: bool = False
    """Whether a small predictor moves the threshold for each token."""
    per_token_reach: float = Field(1.0, gt=0)
    """Largest move of the threshold per token in either direction, in logits, greater than 0: with 1, a level of 0.5
    becomes 0.27 to 0.73."""

    def refuse_control(self, why: str, prefix: str = "") -> None:
        """Raise ValueError for a setting that nothing would read."""
        for name in ("controller", "scope", "per_token"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"{prefix}{name} is {value}, but {why}; leave it out")

    def fit_level(self, name: str, level: Level, layers: int) -> None:
        """Raise ValueError for a level of the wrong length or range, or one that the controller would not read."""
        if isinstance(level, tuple) and len(level) != layers:
            raise ValueError(f"{name} lists {len(level)} thresholds, num_layers is {layers}: give one for each layer")
        if self.controller == "quantile" and not isinstance(level, float):
            raise ValueError(f"{name} sets each layer, but the controller is quantile: choose fixed or learned")
        if self.scope == "model" and self.controller != "pi":
            raise ValueError(
                f"scope is model, but the controller of {name} is {self.controller}; set it to pi, or leave scope out"
            )
        if self.controller == "pi" and self.scope == "model" and len(set(levels(level, layers))) > 1:
            raise ValueError(f"{name} sets each layer, but scope model holds one level for all: give one number")
        least = 0.0 if name.startswith("depth") else 1e-6
        for value in levels(level, layers):
            if not least <= value <= 1:
                expected = "0 to 1" if least == 0 else "greater than 0, less than or equal to 1"
                raise ValueError(f"{name} holds {value}; expected {expected}")
