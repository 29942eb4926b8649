"""Sampling of tasks by learning progress: more windows for a task while its loss changes faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..data.corpus import Corpus


class LearningProgress:
    """Sets the shares of the tasks every few steps, if `data.sampling.by` is `progress`.

        share_i = floor * base_i + (1 - floor) * |slope_i| / sum of |slope_j|

    base_i is the share by temperature, and slope_i that of a least-squares line through the last means of the task's
    training loss. A task that is forgotten, whose loss rises, gets more windows too. Until each task has two means, the
    shares are those by temperature.

    Source: Matiisen et al. 2017, "Teacher-Student Curriculum Learning" (arXiv 1707.00183), the algorithm "Window".
    Departs from it: windows are dealt in the proportion of the shares, with nothing drawn, so that a run can be
    repeated and resumed exactly; and a floor, in place of an exploration rate, goes to each task by its base.
    """

    def __init__(self, corpus: Corpus, state: Mapping[str, Any] | None = None) -> None:
        """Set up the sampling; `state` is that of a checkpoint."""
        self.corpus, self.settings = corpus, corpus.sampling
        self.active = corpus.sampling.by == "progress"
        number = len(corpus.tasks)
        self._base = [task.share for task in corpus.tasks]
        self._nats, self._tokens = [0.0] * number, [0] * number
        self._means: list[list[float | None]] = []
        if self.active and state:
            self._nats, self._tokens = list(state["nats"]), list(state["tokens"])
            self._means = [list(means) for means in state["means"]]
            corpus.restore_mixture(state["mixture"])

    def state(self) -> dict[str, Any] | None:
        """Return what a checkpoint needs; None if shares are fixed."""
        if not self.active:
            return None
        return {
            "nats": self._nats,
            "tokens": self._tokens,
            "means": self._means,
            "mixture": self.corpus.mixture_state(),
        }

    def observe(self, nats: Sequence[float], tokens: Sequence[int]) -> None:
        """Add the summed loss and the scored tokens of each task in a step."""
        if self.active:
            self._nats = [before + more for before, more in zip(self._nats, nats, strict=True)]
            self._tokens = [before + more for before, more in zip(self._tokens, tokens, strict=True)]

    def adapt(self, step: int, read: Callable[[], Mapping[int, int]]) -> None:
        """Change the shares if they change at this step; call it before the batch of each step.

        Args:
            step: The number of the step (0, 1, ...).
            read: Returns the number of windows read of each length.
        """
        if not self.active or not step or step % self.settings.every:
            return
        means = [nats / tokens if tokens else None for nats, tokens in zip(self._nats, self._tokens, strict=True)]
        self._means = [*self._means, means][-self.settings.window :]
        self._nats, self._tokens = [0.0] * len(means), [0] * len(means)
        slopes = [slope([means[task] for means in self._means]) for task in range(len(means))]
        self.corpus.set_shares(shares(self._base, slopes, self.settings.floor), read())


def slope(values: Sequence[float | None]) -> float | None:
    """Return the slope of the least-squares line through the values at 0, 1, ...; None with fewer than two of them."""
    points = [(place, value) for place, value in enumerate(values) if value is not None]
    if len(points) < 2:
        return None
    middle = sum(place for place, _ in points) / len(points)
    mean = sum(value for _, value in points) / len(points)
    spread = sum((place - middle) ** 2 for place, _ in points)
    return sum((place - middle) * (value - mean) for place, value in points) / spread


def shares(base: Sequence[float], slopes: Sequence[float | None], floor: float) -> list[float]:
    """Return the shares of the tasks from the slopes of their losses."""
    sizes = [abs(each) for each in slopes if each is not None]
    total = sum(sizes)
    if len(sizes) < len(base) or not total:
        return list(base)
    return [floor * share + (1 - floor) * size / total for share, size in zip(base, sizes, strict=True)]
