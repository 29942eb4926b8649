"""The ways in which a model can do less, each as one coordinate from 0 (all of it) to 1 (as little as it can).

L layers. A setting has a coordinate for each mechanism that the model has, and is turned into thresholds by the model's
quantile tables, so that equal steps of a coordinate are about equal steps of what is used. Every threshold moves one
way only as its coordinate rises.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from ..dial import Floats, Thresholds
from ..format.manifest import Manifest

Setting = tuple[float, ...]
Level = Callable[[int, float], float]  # layer, coordinate above 0 -> threshold

FEWEST_EXPERTS = 1e-6  # a threshold of the first expert alone; 0 is no mass at all
EXIT_THRESHOLDS = (0.999, 0.99, 0.98, 0.96, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
"""Where `exit_levels` looks; dense near 1, where a confident model's tokens leave."""


@dataclass(frozen=True)
class Mechanism:
    """name: experts, heads, depth or exit; field: the threshold that it moves; layers: those that have it."""

    name: str
    field: str
    layers: tuple[int, ...]
    level: Level

    def apply(self, thresholds: Thresholds, coordinate: float) -> None:
        """Set the thresholds of its layers; at 0 they stay at everything."""
        if coordinate > 0:
            values: Floats = getattr(thresholds, self.field)
            values[list(self.layers)] = [self.level(layer, coordinate) for layer in self.layers]


def mechanisms(manifest: Manifest) -> list[Mechanism]:
    """Those that the model has, exits excepted: where tokens leave has to be measured first (see `exit_mechanism`)."""
    model, table = manifest.model, manifest.dial
    heads = table.head_top_p or [None] * model.num_layers

    def tabled(columns: Sequence[list[float] | None], all_of_it: float, least: float = 0.0) -> Level:
        def level(layer: int, coordinate: float) -> float:
            # Everything is at the threshold that says so, not at what the table saw last: between the two lies a jump.
            # Without a table, equal steps of the threshold itself.
            column = [*(columns[layer] or [1 - all_of_it] * 2)[:-1], all_of_it]
            grid = table.grid if columns[layer] else [0, 1]
            return max(float(np.interp(1 - coordinate, grid, column)), least)

        return level

    experts = tuple(i for i, one in enumerate(model.layers) if one.routing == "top_p" and one.num_experts > 1)
    routed = tuple(i for i, one in enumerate(model.layers) if one.head_routing in ("top_p", "adaptive")
                   and len(set(one.head_range(model.num_heads))) > 1)  # fmt: skip
    routers = tuple(i for i, one in enumerate(model.layers) if one.depth_router)
    found = (
        Mechanism("experts", "router_top_p", experts, tabled(table.router_top_p, 1.0, FEWEST_EXPERTS)),
        Mechanism("heads", "head_top_p", routed, tabled(heads, 1.0)),
        Mechanism("depth", "depth_threshold", routers, tabled(table.depth_threshold, 0.0)),
    )
    return [one for one in found if one.layers]


def exit_mechanism(manifest: Manifest, cost: Callable[[Thresholds], float]) -> Mechanism | None:
    """The exits, or None where the model has none, or they cost more than they save.

    `cost` measures the executed share at thresholds. Open exits first cost their checks; coordinate 0 is closed, and
    just above it comes the threshold at which the tokens that leave pay for the checks of those that stay. From there
    on, equal steps save equally much.
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
    costs = list(np.minimum.accumulate(costs))  # a lower threshold lets more leave; what noise there is ends here
    if costs[-1] >= closed:
        return None

    def level(_: int, coordinate: float) -> float:
        wanted = closed - coordinate * (closed - costs[-1])
        return float(np.interp(-wanted, -np.array(costs), EXIT_THRESHOLDS))

    return Mechanism("exit", "exit_threshold", layers, level)


def thresholds_of(base: Thresholds, found: Sequence[Mechanism], setting: Setting) -> Thresholds:
    """The thresholds of a setting; `base` are those of a setting of nothing but 0."""
    thresholds = replace(base, **{one.name: getattr(base, one.name).copy() for one in fields(base)})
    for mechanism, coordinate in zip(found, setting, strict=True):
        mechanism.apply(thresholds, coordinate)
    return thresholds
