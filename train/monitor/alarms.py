"""Alarms: figures that have been outside their bands for some time, each said once."""

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
        return self.figure.partition("/")[2]

    @property
    def above(self) -> bool:
        """Whether the value is above its band and not below; one that is no number is above."""
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
    """Counts for each figure the logged steps outside its band; part of a checkpoint.

    `raised` are the alarms that hold, `broken` those of this step whether patience is over or not.
    """

    def __init__(self, config: MonitorConfig, state: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.outside: dict[str, int] = dict((state or {}).get("outside", {}))
        """Figure -> logged steps in a row outside its band; those inside are left out."""

    def state(self) -> dict[str, Any]:
        return {"outside": dict(self.outside)}

    def judge(self, figures: Mapping[str, float], rate: float = 1.0) -> tuple[list[Alarm], list[Alarm]]:
        """The alarms that hold after a logged step, and those of them that are new with it.

        `rate` is the factor of the schedule on the learning rates.
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
    """The band of a figure, by what stands before the name of its layer.

    The least update ratio falls with `rate`: at the end of a long cosine steps are tiny because they should be.
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
    """Whether a value is in its band; one that is no number is only where nothing bounds it from above."""
    least, most = band
    return not (least is not None and value < least) and (most is None or value <= most)
