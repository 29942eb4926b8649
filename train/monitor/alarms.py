"""Alarms: figures that have been outside their bands for some time. Each is raised once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config.monitor import Band, MonitorConfig


@dataclass(frozen=True)
class Alarm:
    """A figure that left its band."""

    figure: str
    value: float
    band: Band

    @property
    def layer(self) -> str:
        """The layer of the figure: `layers.N`, `embedding`, `head` or `rest`."""
        return self.figure.partition("/")[2]

    @property
    def above(self) -> bool:
        """Whether the value is above its band; NaN counts as above."""
        least = self.band[0]
        return least is None or not self.value < least

    def __str__(self) -> str:
        least, most = self.band
        if least is not None and most is not None:
            expected = f"{least:g} to {most:g}"
        else:
            expected = f"at least {least:g}" if least is not None else f"at most {most:g}"
        return f"{self.figure} is {self.value:.3g}, expected {expected}"


class Alarms:
    """Count for each figure the logged steps outside its band; part of a checkpoint."""

    def __init__(self, config: MonitorConfig, state: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.outside: dict[str, int] = dict((state or {}).get("outside", {}))
        """Figure -> logged steps in a row outside its band; those inside are left out."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"outside": dict(self.outside)}

    def judge(self, figures: Mapping[str, float], rate: float = 1.0) -> tuple[list[Alarm], list[Alarm]]:
        """Return the alarms that hold after a logged step, and those of them that are new.

        Args:
            figures: Name -> value, as in metrics.jsonl.
            rate: The factor of the schedule on the learning rates, 0 to 1.
        """
        holding, new = [], []
        for name, value in figures.items():
            band = band_of(self.config, name, rate)
            if is_inside(value, band):
                self.outside.pop(name, None)
                continue
            self.outside[name] = self.outside.get(name, 0) + 1
            if self.outside[name] >= self.config.patience:
                holding.append(Alarm(name, value, band))
            if self.outside[name] == self.config.patience:
                new.append(holding[-1])
        return holding, new


def band_of(config: MonitorConfig, figure: str, rate: float = 1.0) -> Band:
    """Return the band of a figure, by the part of its name before the layer.

    The least update ratio falls with `rate`, because the steps at the end of a long cosine are meant to be tiny.
    """
    kind = figure.partition("/")[0]
    for suffix, least in (
        ("_token_entropy", config.router_token_entropy),
        ("_entropy", config.router_entropy),
        ("_load", config.router_load),
    ):
        if kind.endswith(suffix):
            return least, None
    least_step, most_step = config.update_ratio
    bands: dict[str, Band] = {
        "grad_norm": config.grad_norm,
        "update_ratio": (None if least_step is None else least_step * rate, most_step),
        "activation_rms": config.activation_rms,
    }
    return bands.get(kind, (None, None))


def is_inside(value: float, band: Band) -> bool:
    """Return whether a value is in its band; NaN is inside only if the band has no upper edge."""
    least, most = band
    return not (least is not None and value < least) and (most is None or value <= most)
