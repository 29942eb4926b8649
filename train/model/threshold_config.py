"""How a routing threshold is set: the settings that experts, heads and depth share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..system.section import Section


class Line(Section):
    """A threshold that goes in a line from the first layer to the last."""

    first: float = Field(ge=0, le=1)
    last: float = Field(ge=0, le=1)


Level = float | tuple[float, ...] | Line
"""A threshold of every layer: one for all, one each, or a line."""


def levels(level: Level, layers: int) -> list[float]:
    """The threshold of each layer."""
    if isinstance(level, Line):
        return [level.first + (level.last - level.first) * layer / max(layers - 1, 1) for layer in range(layers)]
    return list(level) if isinstance(level, tuple) else [level] * layers


class Controlled(Section):
    """How a threshold is held.

    The level of a layer is held at a target average (`quantile`: the quantile of the scores seen, of which a table is
    kept that is the dial; `pi`: a proportional-integral controller, DTop-p, arXiv 2512.13996), set (`fixed`), or
    learned by gradient under a budget (`learned`). On top, `per_token` moves it for each token.
    """

    controller: Literal["quantile", "fixed", "learned", "pi"] = "quantile"
    scope: Literal["layer", "model"] = "layer"
    """Whether `pi` holds the average of each layer, or that of all layers by one level."""
    pi_gains: tuple[float, float] = (0.05, 0.01)
    """Change of the level per step for an error of a whole share, proportional and integral."""
    ema: float = Field(0.7, ge=0, lt=1)
    """Decay per step of the quantile table; a slow table lags a router that sharpens."""
    per_token: bool = False
    """Whether a predictor moves the threshold for each token."""
    per_token_reach: float = Field(1.0, gt=0)
    """How far it moves the threshold at most, either way, in logits: with 1, a level of 0.5 becomes 0.27 to 0.73."""

    def refuse_control(self, why: str, prefix: str = "") -> None:
        """Raises ValueError for a setting that nothing would read."""
        for name in ("controller", "scope", "per_token"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"{prefix}{name} is {value}, but {why}; leave it out")

    def fit_level(self, name: str, level: Level, layers: int) -> None:
        """Raises ValueError for a level of the wrong length or range, or one that the controller would not read."""
        if isinstance(level, tuple) and len(level) != layers:
            raise ValueError(f"{name} lists {len(level)} thresholds, num_layers is {layers}: give one for each layer")
        if self.controller == "quantile" and not isinstance(level, float):
            raise ValueError(f"{name} sets each layer, but the controller is quantile: choose fixed or learned")
        if self.scope == "model" and self.controller != "pi":
            raise ValueError(f"scope is model, but the controller of {name} is {self.controller}: only pi has one")
        if self.controller == "pi" and self.scope == "model" and len(set(levels(level, layers))) > 1:
            raise ValueError(f"{name} sets each layer, but scope model holds one level for all: give one number")
        least = 0.0 if name.startswith("depth") else 1e-6
        for value in levels(level, layers):
            if not least <= value <= 1:
                expected = "0 to 1" if least == 0 else "greater than 0, less than or equal to 1"
                raise ValueError(f"{name} holds {value}; expected {expected}")
