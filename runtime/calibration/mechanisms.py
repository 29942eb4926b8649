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
from ..format.schema.curve import ExpertRule

Setting = tuple[float, ...]
Level = Callable[[int, float], float]
"""(layer, coordinate above 0) -> threshold."""
Cost = Callable[[Thresholds], float]
"""Measures the executed share at thresholds."""

FEWEST_EXPERTS = 1e-6
"""Threshold that keeps the first expert alone; 0 would be no mass at all."""
EXPERT_MASSES = (0.98, *(round(0.95 - 0.05 * i, 2) for i in range(18)), FEWEST_EXPERTS)
EXPERT_RATIOS = (0.02, *(round(0.05 + 0.05 * i, 2) for i in range(20)))
"""Thresholds that are measured for experts that have no table: shares of the mass, and ratios to the first."""
EXIT_THRESHOLDS = (0.999, 0.99, 0.98, 0.96, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
"""Thresholds that are measured for exits; dense near 1, where the tokens of a confident model leave."""


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


def adapts(manifest: Manifest) -> bool:
    """Return whether a threshold decides how much of the model runs."""
    return any(
        one.dials_experts
        or (one.head_routing in ("top_p", "adaptive") and len(set(one.head_range(manifest.model.num_heads))) > 1)
        or one.depth_router
        or one.exit
        for one in manifest.model.layers
    )


def expert_rules(manifest: Manifest) -> tuple[ExpertRule, ...]:
    """List the rules for leaving experts out: two where a token chooses among few candidates, else the mass."""
    return ("mass", "ratio") if manifest.model.dials_ratio else ("mass",)


def mechanisms(manifest: Manifest, cost: Cost, rule: ExpertRule = "mass") -> list[Mechanism]:
    """List the mechanisms of the model, without exits (see `exit_mechanism`).

    Args:
        manifest: The model.
        cost: Measures the executed share at thresholds, where the model has no table of them.
        rule: How experts are left out.
    """
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

    experts = tuple(i for i, one in enumerate(model.layers) if one.dials_experts)
    routed = tuple(i for i, one in enumerate(model.layers) if one.head_routing in ("top_p", "adaptive")
                   and len(set(one.head_range(model.num_heads))) > 1)  # fmt: skip
    routers = tuple(i for i, one in enumerate(model.layers) if one.depth_router)
    candidates: list[Mechanism | None] = []
    if experts and rule == "ratio":
        candidates.append(
            MeasuredThresholds("router_ratio", experts, EXPERT_RATIOS).mechanism("experts", manifest, cost)
        )
    elif experts and all(table.router_top_p[i] is None for i in experts):
        candidates.append(
            MeasuredThresholds("router_top_p", experts, EXPERT_MASSES).mechanism("experts", manifest, cost)
        )
    elif experts:
        level = tabled(table.router_top_p, 1.0, FEWEST_EXPERTS)
        candidates.append(Mechanism("experts", "router_top_p", experts, level))
    candidates += [
        Mechanism("heads", "head_top_p", routed, tabled(heads, 1.0)),
        Mechanism("depth", "depth_threshold", routers, tabled(table.depth_threshold, 0.0)),
    ]
    return [one for one in candidates if one is not None and one.layers]


def exit_mechanism(manifest: Manifest, cost: Cost) -> Mechanism | None:
    """Measure the exits; return None if the model has none, or if they cost more than they save.

    Open exits first cost their checks. Coordinate 0 is closed; just above it is the threshold at which the tokens that
    leave pay for the checks of those that stay. From there on, equal steps save equal amounts.
    """
    layers = tuple(i for i, one in enumerate(manifest.model.layers) if one.exit)
    return (
        MeasuredThresholds("exit_threshold", layers, EXIT_THRESHOLDS).mechanism("exit", manifest, cost)
        if layers
        else None
    )


@dataclass(frozen=True)
class MeasuredThresholds:
    """Thresholds of one kind, the same in some layers, whose cost is measured: equal steps save equal amounts."""

    field: str
    """The field of `Thresholds`."""
    layers: tuple[int, ...]
    grid: tuple[float, ...]
    """Thresholds to measure, from nearly everything to as little as possible."""

    def mechanism(self, name: str, manifest: Manifest, cost: Cost) -> Mechanism | None:
        """Measure the thresholds, and return their mechanism; None if the least of them costs no less than everything.

        Args:
            name: The name of the mechanism.
            manifest: The model.
            cost: Measures the executed share at thresholds.
        """
        everything = cost(Thresholds.everything(manifest.model.num_layers))
        measured = []
        for threshold in self.grid:
            point = Thresholds.everything(manifest.model.num_layers)
            getattr(point, self.field)[list(self.layers)] = threshold
            measured.append(cost(point))
        costs = np.minimum.accumulate(measured)  # a threshold for less costs less, apart from noise
        if costs[-1] >= everything:
            return None

        def level(_: int, coordinate: float) -> float:
            wanted = everything - coordinate * (everything - costs[-1])
            return float(np.interp(-wanted, -costs, self.grid))

        return Mechanism(name, self.field, self.layers, level)


def thresholds_of(base: Thresholds, mechanisms: Sequence[Mechanism], setting: Setting) -> Thresholds:
    """Return the thresholds of a setting; `base` are those of a setting of zeros."""
    thresholds = replace(base, **{one.name: getattr(base, one.name).copy() for one in fields(base)})
    for mechanism, coordinate in zip(mechanisms, setting, strict=True):
        mechanism.apply(thresholds, coordinate)
    return thresholds
