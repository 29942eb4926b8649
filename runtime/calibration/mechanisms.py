"""The mechanisms by which a model can do less, each as a coordinate from 0 (all of it) to 1 (as little as it can).

L layers. A setting has a coordinate for each mechanism of the model. The model's quantile tables turn it into
thresholds, so that equal steps of a coordinate are about equal steps of usage. Every threshold moves one way only as
its coordinate rises.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from ..dial import Floats, Thresholds
from ..format.manifest import Manifest

Setting = tuple[float, ...]
Level = Callable[[int, float], float]
"""(layer, coordinate above 0) -> threshold."""

FEWEST_EXPERTS = 1e-6
"""Threshold that keeps the first expert alone; 0 would be no mass at all."""
EXIT_THRESHOLDS = (0.999, 0.99, 0.98, 0.96, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
"""Thresholds that `exit_mechanism` measures; dense near 1, where the tokens of a confident model leave."""


@dataclass(frozen=True)
class Mechanism:
    """One way to do less."""

    name: str
    """experts, heads, depth or exit."""
    field: str
    """The field of `Thresholds` that it moves."""
    layers: tuple[int, ...]
    """The layers that have it."""
    level: Level

    def apply(self, thresholds: Thresholds, coordinate: float) -> None:
        """Set the thresholds of its layers; at coordinate 0 they stay at everything."""
        if coordinate > 0:
            values: Floats = getattr(thresholds, self.field)
            values[list(self.layers)] = [self.level(layer, coordinate) for layer in self.layers]


def mechanisms(manifest: Manifest) -> list[Mechanism]:
    """List the mechanisms of the model, without exits, which have to be measured first (see `exit_mechanism`)."""
    model, table = manifest.model, manifest.dial
    heads = table.head_top_p or [None] * model.num_layers

    def tabled(columns: Sequence[list[float] | None], all_of_it: float, least: float = 0.0) -> Level:
        def level(layer: int, coordinate: float) -> float:
            # Everything is at its own threshold, not at the last value of the table: there is a jump between the two.
            # Without a table, the steps of the threshold itself are equal.
            column = [*(columns[layer] or [1 - all_of_it] * 2)[:-1], all_of_it]
            grid = table.grid if columns[layer] else [0, 1]
            return max(float(np.interp(1 - coordinate, grid, column)), least)

        return level

    experts = tuple(i for i, one in enumerate(model.layers) if one.routing == "top_p" and one.candidates > 1)
    routed = tuple(i for i, one in enumerate(model.layers) if one.head_routing in ("top_p", "adaptive")
                   and len(set(one.head_range(model.num_heads))) > 1)  # fmt: skip
    routers = tuple(i for i, one in enumerate(model.layers) if one.depth_router)
    candidates = (
        Mechanism("experts", "router_top_p", experts, tabled(table.router_top_p, 1.0, FEWEST_EXPERTS)),
        Mechanism("heads", "head_top_p", routed, tabled(heads, 1.0)),
        Mechanism("depth", "depth_threshold", routers, tabled(table.depth_threshold, 0.0)),
    )
    return [one for one in candidates if one.layers]


def exit_mechanism(manifest: Manifest, cost: Callable[[Thresholds], float]) -> Mechanism | None:
    """Measure the exits; return None if the model has none, or if they cost more than they save.

    Open exits first cost their checks. Coordinate 0 is closed; just above it is the threshold at which the tokens that
    leave pay for the checks of those that stay. From there on, equal steps save equal amounts.

    Args:
        manifest: The model.
        cost: Measures the executed share at thresholds.
    """
    layers = tuple(i for i, one in enumerate(manifest.model.layers) if one.exit)
    if not layers:
        return None
    closed = cost(Thresholds.everything(manifest.model.num_layers))
    costs = []
    for threshold in EXIT_THRESHOLDS:
        point = Thresholds.everything(manifest.model.num_layers)
        point.exit_threshold[list(layers)] = threshold
        costs.append(cost(point))
    costs = list(np.minimum.accumulate(costs))  # a lower threshold lets more tokens leave, apart from noise
    if costs[-1] >= closed:
        return None

    def level(_: int, coordinate: float) -> float:
        wanted = closed - coordinate * (closed - costs[-1])
        return float(np.interp(-wanted, -np.array(costs), EXIT_THRESHOLDS))

    return Mechanism("exit", "exit_threshold", layers, level)


def thresholds_of(base: Thresholds, mechanisms: Sequence[Mechanism], setting: Setting) -> Thresholds:
    """Return the thresholds of a setting; `base` are those of a setting of zeros."""
    thresholds = replace(base, **{one.name: getattr(base, one.name).copy() for one in fields(base)})
    for mechanism, coordinate in zip(mechanisms, setting, strict=True):
        mechanism.apply(thresholds, coordinate)
    return thresholds
