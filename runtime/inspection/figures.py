"""`adaptive inspect`: which experts, heads and layers a model chooses for which tokens, on a text.

T tokens, L layers, N units that one router chooses among (the experts or heads of a layer, or the layers), G groups.

    share of a unit             tokens that used it / tokens that ran the layer
    entropy                     of a unit drawn from all uses of the layer's units, in nats; e^entropy units used alike
                                would have as much (`effective`)
    coactivation[i][j]          tokens that used i and j / tokens that used i
    specialisation to groups    sum over units of I(group; used or not) / sum over units of H(used or not): 0 where the
                                group says nothing about what a token uses, 1 where it decides it; `by_chance` is the
                                same with the groups shuffled over the tokens, above 0 on a text of any length

Source: OLMoE (Muennighoff et al. 2024, arXiv 2409.02060), section 5, has co-activation as here, and specialisation to
domains and vocabulary as the share of a group's tokens that use an expert (`Split.share` here).
Departs from it: a token may use any number of units, and may skip the layer; shared heads, which no router chooses,
have a share but no part in entropy, specialisation and the count of the dead. Information is summed unit by unit and
not taken of one unit drawn from those in use: of that, no group could tell all where a token uses several.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..execution.routes import Routes
from ..format.manifest import Model
from .token_groups import Grouping

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SHUFFLES = 8


@dataclass(frozen=True)
class Spread:
    """Of one value per token; all NaN over no tokens."""

    mean: float
    deviation: float  # standard
    p5: float
    median: float
    p95: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> "Spread":
        if not values.size:
            return cls(*[math.nan] * 5)
        return cls(float(values.mean()), float(values.std()), *map(float, np.percentile(values, [5, 50, 95])))


@dataclass(frozen=True)
class Split:
    """One choice by the groups of one grouping; only tokens that ran the layer count."""

    name: str
    labels: tuple[str, ...]  # (G,)
    tokens: Ints  # (G,)
    share: Floats  # (G, N), of the group's tokens, that used the unit; NaN for a group without tokens
    information: float  # nats, summed over the units
    specialisation: float  # NaN where there was nothing to choose
    by_chance: float


@dataclass(frozen=True)
class Choice:
    """What one router chose, over the tokens that ran its layer."""

    layer: int | None  # None: the layers themselves were chosen
    tokens: int
    free: Bools  # (N,): the router chooses it; False for shared heads and for layers that always run
    share: Floats  # (N,)
    per_token: Spread
    how_many: Floats  # (N + 1,): share of the tokens that used 0, 1, ... N units
    entropy: float  # nats, of the free units; NaN where none was used
    dead: Ints  # free units whose share is below the floor
    together: Floats  # (N, N): share of the tokens that used both
    splits: tuple[Split, ...]

    @property
    def effective(self) -> float:
        return math.exp(self.entropy)

    @property
    def normalised_entropy(self) -> float:
        """0: one unit has all uses, 1: all have as many; NaN where there is but one to choose."""
        number = int(self.free.sum())
        return self.entropy / math.log(number) if number > 1 else math.nan

    @property
    def coactivation(self) -> Floats:
        """(N, N), row i of the tokens that used i; NaN in the row of a unit that none used."""
        return ratio(self.together, self.share[:, None])

    @property
    def strongest_pair(self) -> tuple[int, int] | None:
        """The free units that are used together the most above what their shares alone would give; None if none is."""
        beyond = np.triu(self.together - np.outer(self.share, self.share), 1)
        beyond[~self.free, :] = beyond[:, ~self.free] = 0
        if not beyond.size or not beyond.max() > 1e-9:
            return None
        i, j = np.unravel_index(int(beyond.argmax()), beyond.shape)
        return int(i), int(j)


@dataclass(frozen=True)
class Part:
    """All choices of one kind. `per_token` is of each token's mean over the layers it ran, as `Usage` has it."""

    name: str  # experts, heads or layers
    per_token: Spread
    choices: tuple[Choice, ...]

    def per_group(self, grouping: int) -> Floats:
        """(G,): units that a token of the group uses per layer that it ran."""
        splits = [choice.splits[grouping] for choice in self.choices]
        used = sum((np.nan_to_num(one.share).sum(1) * one.tokens for one in splits), np.zeros(1))
        return ratio(used, sum((one.tokens for one in splits), np.zeros(1)))


@dataclass(frozen=True)
class Look:
    """How far back the tokens of a layer with a window look."""

    layer: int
    most: int
    window: Spread  # over the tokens that ran the layer
    by_group: tuple[Floats, ...]  # of each grouping (G,): mean; NaN for a group without tokens


def parts_of(model: Model, routes: Routes, groupings: tuple[Grouping, ...], floor: float) -> list[Part]:
    """Experts, heads and layers, each only where a model chooses among them."""
    run = routes.layers_run  # (L, T)
    experts: list[Choice] = []
    heads: list[Choice] = []
    for l, layer in enumerate(model.layers):
        if layer.routing != "dense" and layer.num_experts > 1:
            selected = routes.selected_experts[l, :, : layer.num_experts]
            experts.append(choice_of(l, selected, run[l], np.ones(layer.num_experts, bool), groupings, floor))
        if layer.head_routing != "all" and routes.selected_heads is not None:
            free = np.arange(model.num_heads) >= layer.shared_heads  # the shared come first
            heads.append(choice_of(l, routes.selected_heads[l], run[l], free, groupings, floor))
    left = np.array([any(before.exit for before in model.layers[:l]) for l in range(model.num_layers)])
    skippable = left | [layer.depth_router for layer in model.layers]
    depth = (
        [choice_of(None, run.T, np.ones(run.shape[1], bool), skippable, groupings, floor)] if skippable.any() else []
    )

    found = []
    for name, choices, selected_units in (
        ("experts", experts, routes.selected_experts),
        ("heads", heads, routes.selected_heads),
    ):
        if choices and selected_units is not None:
            where = [choice.layer for choice in choices if choice.layer is not None]
            used = selected_units[where].sum((0, 2))  # (T,)
            layers = run[where].sum(0)  # (T,)
            found.append(Part(name, Spread.of((used / np.maximum(layers, 1))[layers > 0]), tuple(choices)))
    return found + [Part("layers", choice.per_token, (choice,)) for choice in depth]


def choice_of(
    layer: int | None, selected: Bools, ran: Bools, free: Bools, groupings: tuple[Grouping, ...], floor: float
) -> Choice:
    """The figures of selected (T, N), for the tokens of ran (T,), where the router has a say over free (N,)."""
    used = selected[ran].astype(np.float64)  # (T', N)
    tokens, N = used.shape
    share = used.sum(0) / max(tokens, 1)
    return Choice(
        layer=layer,
        tokens=tokens,
        free=np.asarray(free),
        share=share,
        per_token=Spread.of(used.sum(1)),
        how_many=np.bincount(used.sum(1).astype(np.int64), minlength=N + 1) / max(tokens, 1),
        entropy=entropy_of(used[:, free].sum(0)),
        dead=np.flatnonzero(free & (share < floor)),
        together=used.T @ used / max(tokens, 1),
        splits=tuple(split_of(one, one.of[ran], used, np.asarray(free)) for one in groupings),
    )


def split_of(grouping: Grouping, of: Ints, used: Floats, free: Bools) -> Split:
    """used (T', N) by the groups of (T',); shuffled with a fixed seed for what chance alone would give."""
    number = len(grouping.labels)

    def counts(groups: Ints) -> Floats:
        """(G, N): how often the tokens of each group used each unit."""
        return np.asarray(np.eye(number)[groups].T @ used)

    joint, tokens = counts(of), np.bincount(of, minlength=number)
    information, specialisation = mutual_information(joint[:, free], tokens)
    random = np.random.default_rng(0)
    shuffled = [mutual_information(counts(random.permutation(of))[:, free], tokens)[1] for _ in range(SHUFFLES)]
    share = ratio(joint, tokens[:, None])
    by_chance = float(np.mean(shuffled))
    return Split(grouping.name, grouping.labels, tokens, share, information, specialisation, by_chance)


def looks_of(model: Model, routes: Routes, groupings: tuple[Grouping, ...]) -> list[Look]:
    """One for each layer with a window."""
    found: list[Look] = []
    for l, layer in enumerate(model.layers):
        if layer.window and routes.windows is not None:
            ran = routes.layers_run[l]
            windows = routes.windows[l, ran].astype(np.float64)
            means = []
            for one in groupings:
                of, number = one.of[ran], len(one.labels)
                sums = np.bincount(of, windows, number).astype(np.float64)  # (G,)
                means.append(ratio(sums, np.bincount(of, minlength=number)))
            found.append(Look(l, layer.window, Spread.of(windows), tuple(means)))
    return found


def entropy_of(counts: Floats) -> float:
    """Nats of drawing one of counts (N,); NaN where they are all 0."""
    total = counts.sum()
    if not total:
        return math.nan
    p = counts[counts > 0] / total
    return max(0.0, -float((p * np.log(p)).sum()))


def mutual_information(joint: Floats, tokens: Ints) -> tuple[float, float]:
    """joint (G, N): how many of tokens (G,) used each unit -> I(group; used or not) summed over units, in nats, and its
    share of the sum of H(used or not): NaN where that is 0."""
    total = tokens.sum()
    if not total:
        return math.nan, math.nan
    whole = float(binary_entropy(joint.sum(0) / total).sum())
    within = float((tokens[:, None] / total * binary_entropy(np.nan_to_num(ratio(joint, tokens[:, None])))).sum())
    nats = max(0.0, whole - within)
    return nats, nats / whole if whole > 0 else math.nan


def binary_entropy(p: Floats) -> Floats:
    """Nats of a yes with probability p, and else a no."""
    q = 1 - p
    return np.asarray(-p * np.log(np.where(p > 0, p, 1)) - q * np.log(np.where(q > 0, q, 1)))


def ratio(above: Floats, below: Floats | Ints) -> Floats:
    """above / below, NaN where below is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.asarray(np.divide(above, below, out=np.full(shape, math.nan), where=below != 0))
