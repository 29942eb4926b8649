"""The points of a curve: their computes, and the thresholds of each, chosen on a text."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from ...contract.errors import UserError
from ..dial import Thresholds, between
from ..format.schema.curve import ExpertRule
from ..generation.engine import Engine
from ..measuring.quality.perplexity import Window, score
from ..terminal.progress import Progress
from .mechanisms import Mechanism, Setting, exit_mechanism, mechanisms, thresholds_of
from .search import Measured, path, reach

LEAST = 0.25
"""Lowest executed share of the dense FLOPs that is searched: below it, models of our sizes are useless."""
SAVES = 0.001
"""Least executed share that a whole mechanism must save to take part in the search."""
NUM_POINTS = 10
BENT = 0.01
"""Executed share: two points get a third between them if the dial is off by more than this there."""
MORE_ROUNDS = 2
"""Rounds of adding such points."""
COMPARED = 50
"""Costs at which the losses of two paths are compared."""
LEAST_RANGE = 0.02
"""Least executed share between everything and the least: below it, there is nothing to dial."""


class Search:
    """The search on one model and the text to choose on. Each setting is measured once.

    Args:
        engine: The model.
        texts: The text to choose on.
        progress: Where the search is reported.
        rule: How experts are left out.

    Raises:
        UserError: nothing that the thresholds decide saves FLOPs.
    """

    def __init__(self, engine: Engine, texts: Sequence[Window], progress: Progress, rule: ExpertRule = "mass") -> None:
        self._engine, self._texts, self._progress = engine, texts, progress
        self._measured: dict[Setting, Measured] = {}
        self.steps: list[Measured] = []
        """The path, from everything to the least, once `points` has found it."""
        self._base = Thresholds.everything(engine.manifest.model.num_layers)
        begin = time.perf_counter()
        self.most = score(engine, self._base, texts).executed_share
        self._seconds = time.perf_counter() - begin
        saving, free = self._sorted(mechanisms(engine.manifest, self._cost, rule))
        exits = exit_mechanism(engine.manifest, self._cost)
        self.mechanisms: list[Mechanism] = saving + ([exits] if exits else [])
        for one in free:
            self._settle(one)
        if not self.mechanisms:
            raise UserError(
                "this model has nothing to adapt: what its thresholds decide saves no FLOPs (exits may cost more "
                "checks than they save); train one with experts or depth routers, or with fewer exit layers"
            )
        # Every mechanism has twelve notches; a step takes one to three, after measuring two moves of each mechanism.
        count = len(self.mechanisms)
        about = self._seconds * 0.7 * (6 * count * 2 * count + 40)
        names = ", ".join(one.name for one in self.mechanisms)
        progress.log(f"adapting {names}; this takes about {_duration(about)}")

    def _sorted(self, candidates: list[Mechanism]) -> tuple[list[Mechanism], list[Mechanism]]:
        """Split into mechanisms that save FLOPs and others, such as heads that the graph computes anyway."""
        saving: list[Mechanism] = []
        free: list[Mechanism] = []
        for one in candidates:
            saved = self.most - self._cost(thresholds_of(self._base, [one], (1.0,)))
            (saving if saved > SAVES else free).append(one)
        return saving, free

    def _settle(self, mechanism: Mechanism) -> None:
        """Fix a mechanism that saves nothing: all on, or at the model's own threshold, whichever loses less."""
        own = thresholds_of(self._base, [], ())
        places = list(mechanism.layers)
        trained = getattr(Thresholds.of(self._engine.manifest.thresholds), mechanism.field)
        getattr(own, mechanism.field)[places] = trained[places]
        better = score(self._engine, own, self._texts).loss < score(self._engine, self._base, self._texts).loss
        if better:
            self._base = own
        where = "at the model's own threshold" if better else "all on"
        self._progress.log(f"{mechanism.name} save no FLOPs of this graph: they stay {where}, which loses less")

    def thresholds(self, setting: Setting) -> Thresholds:
        """Return the thresholds of a setting."""
        return thresholds_of(self._base, self.mechanisms, setting)

    def points(self) -> list[tuple[float, Thresholds]]:
        """Search the points of the curve, as (compute, thresholds), rising: ten, and more where the dial would bend.

        Raises:
            UserError: the least that the model can do costs nearly as much as everything.
        """
        steps: list[Measured] = []
        for steps in path(self._measure, len(self.mechanisms), LEAST):
            self._progress.show(f"choosing: from {self.most:.0%} to {steps[-1].cost:.1%} of the dense FLOPs, "
                                f"loss {steps[0].loss:.4f} to {steps[-1].loss:.4f}")  # fmt: skip
        self.steps = steps
        least = steps[-1].cost
        if self.most - least < LEAST_RANGE:
            raise UserError(
                f"found {least:.1%} to {self.most:.1%} of the dense FLOPs between the least and everything: nothing to "
                "adapt; train with more to choose from, such as more experts"
            )
        points = {1.0: self.thresholds(steps[0].setting)}
        for compute in computes(max(least, LEAST), self.most)[:-1]:
            points[compute] = self._reached(steps, compute)
        for _ in range(MORE_ROUNDS):
            for compute in self._bent(points):
                more = self._reached(steps, compute)
                if abs(self._cost(more) - compute) <= BENT:  # else the cost jumps here, and no point can fill the gap
                    points[compute] = more
        return sorted(points.items())

    def _reached(self, steps: list[Measured], compute: float) -> Thresholds:
        self._progress.show(f"finding the thresholds for compute {compute:.3g}")
        return self.thresholds(reach(lambda setting: self._cost(self.thresholds(setting)), steps, compute))

    def _bent(self, points: dict[float, Thresholds]) -> list[float]:
        """List the computes half way between two points where interpolated thresholds cost something else."""
        bent = []
        for low, high in pairwise(sorted(points)[:-1]):  # the last point is everything, whatever that costs
            middle = round((low + high) / 2, 4)
            if abs(self._cost(between(points[low], points[high], 0.5)) - middle) > BENT:
                bent.append(middle)
        return bent

    def _measure(self, setting: Setting) -> Measured:
        if setting not in self._measured:
            result = score(self._engine, self.thresholds(setting), self._texts)
            self._measured[setting] = Measured(setting, result.executed_share, result.loss)
        return self._measured[setting]

    def _cost(self, thresholds: Thresholds) -> float:
        return score(self._engine, thresholds, self._texts, logits=False).executed_share


def mean_losses(paths: Mapping[ExpertRule, Sequence[Measured]]) -> dict[ExpertRule, float]:
    """Return the mean loss along each path, over the costs that all of them reach."""
    least = max(steps[-1].cost for steps in paths.values())
    most = min(steps[0].cost for steps in paths.values())
    costs = np.linspace(least, most, COMPARED)
    means: dict[ExpertRule, float] = {}
    for rule, steps in paths.items():
        rising = sorted(steps, key=lambda step: step.cost)
        losses = np.interp(costs, [step.cost for step in rising], [step.loss for step in rising])
        means[rule] = float(losses.mean())
    return means


def computes(least: float, most: float) -> list[float]:
    """Return the computes of the points, in even steps from the least; the last is 1, whatever everything costs."""
    least = float(np.ceil(least * 1000) / 1000)
    inner = np.linspace(least, most, NUM_POINTS)[:-1]
    return [*(round(float(one), 3) for one in inner), 1.0]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
