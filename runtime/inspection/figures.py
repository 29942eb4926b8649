"""The figures of `adaptive inspect`: which experts, heads and layers a model chooses for which tokens, on a text.

T tokens, L layers, N units that one router chooses among (the experts or heads of a layer, or the layers), G groups.

    share of a unit             tokens that used it / tokens that ran the layer
    entropy                     of a unit drawn from all uses of the layer's units, in nats; e^entropy units with equal
                                use would have the same entropy (`effective`)
    coactivation[i][j]          tokens that used i and j / tokens that used i
    specialisation to groups    sum over units of I(group; used or not) / sum over units of H(used or not): 0 if the
                                group does not predict a token's units, 1 if it decides them; `by_chance` is the same
                                with the groups shuffled over the tokens, above 0 on a text of any length

Source: OLMoE (Muennighoff et al. 2024, arXiv 2409.02060), section 5, has co-activation as here, and specialisation to
domains and vocabulary as the share of a group's tokens that use an expert (`Split.share` here).
Departs from it: a token may use any number of units, and may skip the layer; shared heads, which no router chooses,
have a share, but do not count in entropy, specialisation and the dead units. Information is summed over the units. The
information about a single unit, drawn from those in use, could never reach 1 where a token uses several.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..execution.usage.routes import Routes
from ..format.manifest import Model
from .token_groups import Grouping

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SHUFFLES = 8
"""Shuffles over which `by_chance` is averaged."""


@dataclass(frozen=True)
class Spread:
    """Distribution of one value per token; all NaN without tokens."""

    mean: float
    deviation: float
    """Standard deviation."""
    p5: float
    median: float
    p95: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> "Spread":
        """Summarise `values`."""
        if not values.size:
            return cls(*[math.nan] * 5)
        return cls(float(values.mean()), float(values.std()), *map(float, np.percentile(values, [5, 50, 95])))


@dataclass(frozen=True)
class Split:
    """One choice, split by the groups of one grouping. Only tokens that ran the layer count."""

    name: str
    """Name of the grouping."""
    labels: tuple[str, ...]
    """(G,)."""
    tokens: Ints
    """(G,)."""
    share: Floats
    """(G, N): share of the group's tokens that used the unit; NaN for a group without tokens."""
    information: float
    """Nats, summed over the units."""
    specialisation: float
    """0 to 1; NaN if there was nothing to choose."""
    by_chance: float
    """Specialisation to shuffled groups."""


@dataclass(frozen=True)
class Choice:
    """The choices of one router, over the tokens that ran its layer."""

    layer: int | None
    """None if the layers themselves were chosen."""
    tokens: int
    """Tokens that ran the layer."""
    free: Bools
    """(N,): whether the router chooses the unit; False for shared heads and for layers that always run."""
    share: Floats
    """(N,): share of the tokens that used the unit."""
    per_token: Spread
    """Units of one token."""
    how_many: Floats
    """(N + 1,): share of the tokens that used 0, 1, ... N units."""
    entropy: float
    """Nats, of the free units; NaN if none was used."""
    dead: Ints
    """Free units whose share is below the floor."""
    together: Floats
    """(N, N): share of the tokens that used both units."""
    splits: tuple[Split, ...]
    """One for each grouping."""

    @property
    def effective(self) -> float:
        """Number of units with equal use that would have the same entropy."""
        return math.exp(self.entropy)

    @property
    def normalised_entropy(self) -> float:
        """0 if one unit has all uses, 1 if all have the same; NaN if there is only one to choose."""
        number = int(self.free.sum())
        return self.entropy / math.log(number) if number > 1 else math.nan

    @property
    def coactivation(self) -> Floats:
        """(N, N): of the tokens that used i (row), the share that used j; NaN in the row of an unused unit."""
        return ratio(self.together, self.share[:, None])

    @property
    def strongest_pair(self) -> tuple[int, int] | None:
        """The free units used together most often beyond what their shares alone would give; None if none are."""
        beyond = np.triu(self.together - np.outer(self.share, self.share), 1)
        beyond[~self.free, :] = beyond[:, ~self.free] = 0
        if not beyond.size or not beyond.max() > 1e-9:
            return None
        i, j = np.unravel_index(int(beyond.argmax()), beyond.shape)
        return int(i), int(j)


@dataclass(frozen=True)
class Part:
    """All choices of one kind."""

    name: str
    """experts, zero-computation experts, heads or layers."""
    per_token: Spread
    """Mean of each token over the layers that it ran, as in `Usage`."""
    choices: tuple[Choice, ...]

    def per_group(self, grouping: int) -> Floats:
        """Return (G,): units that a token of the group uses per layer that it ran."""
        splits = [choice.splits[grouping] for choice in self.choices]
        used = sum((np.nan_to_num(one.share).sum(1) * one.tokens for one in splits), np.zeros(1))
        return ratio(used, sum((one.tokens for one in splits), np.zeros(1)))


@dataclass(frozen=True)
class WindowUse:
    """The use of the window of a layer: how far back its tokens look."""

    layer: int
    most: int
    """The window of the layer, in tokens."""
    window: Spread
    """Windows of the tokens that ran the layer."""
    by_group: tuple[Floats, ...]
    """For each grouping (G,): mean window; NaN for a group without tokens."""


def parts_of(model: Model, routes: Routes, groupings: tuple[Grouping, ...], floor: float) -> list[Part]:
    """Compute the figures of experts, heads and layers, each only if the model chooses among them."""
    run = routes.layers_run  # (L, T)
    experts: list[Choice] = []
    zero: list[Choice] = []
    heads: list[Choice] = []
    for l, layer in enumerate(model.layers):
        if layer.routing != "dense" and layer.num_experts > 1:
            selected = routes.selected_experts[l, :, : layer.num_experts]
            experts.append(choice_of(l, selected, run[l], np.ones(layer.num_experts, bool), groupings, floor))
        if layer.zero_experts and routes.zero_experts is not None:
            selected = routes.zero_experts[l, :, : len(layer.zero_experts)]
            zero.append(choice_of(l, selected, run[l], np.ones(len(layer.zero_experts), bool), groupings, floor))
        if layer.head_routing != "all" and routes.selected_heads is not None:
            free = np.arange(model.num_heads) >= layer.shared_heads  # the shared come first
            heads.append(choice_of(l, routes.selected_heads[l], run[l], free, groupings, floor))
    left = np.array([any(before.exit for before in model.layers[:l]) for l in range(model.num_layers)])
    skippable = left | [layer.depth_router for layer in model.layers]
    depth = (
        [choice_of(None, run.T, np.ones(run.shape[1], bool), skippable, groupings, floor)] if skippable.any() else []
    )

    parts = []
    for name, choices, selected_units in (
        ("experts", experts, routes.selected_experts),
        ("zero-computation experts", zero, routes.zero_experts),
        ("heads", heads, routes.selected_heads),
    ):
        if choices and selected_units is not None:
            where = [choice.layer for choice in choices if choice.layer is not None]
            used = selected_units[where].sum((0, 2))  # (T,)
            layers = run[where].sum(0)  # (T,)
            parts.append(Part(name, Spread.of((used / np.maximum(layers, 1))[layers > 0]), tuple(choices)))
    return parts + [Part("layers", choice.per_token, (choice,)) for choice in depth]


def choice_of(
    layer: int | None, selected: Bools, ran: Bools, free: Bools, groupings: tuple[Grouping, ...], floor: float
) -> Choice:
    """Compute the figures of `selected` (T, N), for the tokens of `ran` (T,); the router chooses among `free` (N,)."""
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
    """Split `used` (T', N) by the groups `of` (T',), and by shuffled groups, with a fixed seed."""
    number = len(grouping.labels)

    def counts(groups: Ints) -> Floats:
        """Count (G, N): how often the tokens of each group used each unit."""
        return np.asarray(np.eye(number)[groups].T @ used)

    joint, tokens = counts(of), np.bincount(of, minlength=number)
    information, specialisation = mutual_information(joint[:, free], tokens)
    random = np.random.default_rng(0)
    shuffled = [mutual_information(counts(random.permutation(of))[:, free], tokens)[1] for _ in range(SHUFFLES)]
    share = ratio(joint, tokens[:, None])
    by_chance = float(np.mean(shuffled))
    return Split(grouping.name, grouping.labels, tokens, share, information, specialisation, by_chance)


def window_uses(model: Model, routes: Routes, groupings: tuple[Grouping, ...]) -> list[WindowUse]:
    """Compute the use of the window of each layer that has one."""
    uses: list[WindowUse] = []
    for l, layer in enumerate(model.layers):
        if layer.window and routes.windows is not None:
            ran = routes.layers_run[l]
            windows = routes.windows[l, ran].astype(np.float64)
            means = []
            for one in groupings:
                of, number = one.of[ran], len(one.labels)
                sums = np.bincount(of, windows, number).astype(np.float64)  # (G,)
                means.append(ratio(sums, np.bincount(of, minlength=number)))
            uses.append(WindowUse(l, layer.window, Spread.of(windows), tuple(means)))
    return uses


def entropy_of(counts: Floats) -> float:
    """Return the entropy, in nats, of drawing a unit by `counts` (N,); NaN if they are all 0."""
    total = counts.sum()
    if not total:
        return math.nan
    p = counts[counts > 0] / total
    return max(0.0, -float((p * np.log(p)).sum()))


def mutual_information(joint: Floats, tokens: Ints) -> tuple[float, float]:
    """Compute the information of the group about the units that a token uses.

    Args:
        joint: (G, N), how many tokens of each group used each unit.
        tokens: (G,), how many tokens each group has.

    Returns:
        I(group; used or not) summed over the units, in nats; and its share of the sum of H(used or not), NaN for 0.
    """
    total = tokens.sum()
    if not total:
        return math.nan, math.nan
    whole = float(binary_entropy(joint.sum(0) / total).sum())
    within = float((tokens[:, None] / total * binary_entropy(np.nan_to_num(ratio(joint, tokens[:, None])))).sum())
    nats = max(0.0, whole - within)
    return nats, nats / whole if whole > 0 else math.nan


def binary_entropy(p: Floats) -> Floats:
    """Return the entropy, in nats, of an event with probability `p`."""
    q = 1 - p
    return np.asarray(-p * np.log(np.where(p > 0, p, 1)) - q * np.log(np.where(q > 0, q, 1)))


def ratio(above: Floats, below: Floats | Ints) -> Floats:
    """Divide `above` by `below`; NaN where `below` is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.asarray(np.divide(above, below, out=np.full(shape, math.nan), where=below != 0))
