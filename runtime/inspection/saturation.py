"""The saturation of routers: the share of a run's last choices that each earlier step already made.

L layers, N tokens of a fixed held-out text, U units that a router chooses among, S snapshots of a run.

    saturation of a layer at t = sum over tokens |k most probable units at t that are used at the end|
                                 / sum over tokens of k,     k units used by the token at the end

`by_chance` is the saturation of the last routing with its tokens shuffled: the value without looking at the token.

Source: OLMoE (Muennighoff et al. 2024, arXiv 2409.02060), section 5.1 and eq. 7: "router saturation".
Departs from it: a token may use any number of units, so every token has its own k, and the units of an earlier step are
ranked and cut at k; otherwise a router that used all would seem to have settled. Training writes the snapshots
(train/loop/figures/routing_trace.py).
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
FOLDER = "routing"
KINDS = ("experts", "heads")
SHUFFLES = 8


@dataclass(frozen=True)
class Saturation:
    """Saturation of one kind of unit over the snapshots of a run."""

    name: str
    """experts or heads."""
    steps: tuple[int, ...]
    """(S,): the others are compared with the last."""
    layers: tuple[int, ...]
    """(L,)."""
    share: Floats
    """(L, S): 1 in the last column; NaN for a layer that no token ran at the end."""
    by_chance: Floats
    """(L,)."""
    tokens: int
    """Tokens of the held-out text."""

    def as_json(self) -> dict[str, Any]:
        """Return the part of `inspect --json`."""
        return {"steps": self.steps, "layers": self.layers, "share": self.share, "by_chance": self.by_chance,
                "tokens": self.tokens}  # fmt: skip


def saturations(run: Path, until: int | None = None) -> tuple[list[Saturation], list[str]]:
    """Compute the saturations from the snapshots in the folder `run`, up to step `until`; none with fewer than two.

    Returns:
        The saturations, and warnings about snapshots that cannot be read.
    """
    snapshots: list[tuple[int, dict[str, NDArray[Any]]]] = []
    warnings: list[str] = []
    paths = [path for path in (run / FOLDER).glob("step-*.npz") if path.stem[5:].isdigit()]
    for path in sorted(paths, key=lambda one: int(one.stem[5:])):
        if until is not None and int(path.stem[5:]) > until:
            continue
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                snapshots.append((int(path.stem[5:]), {name: arrays[name] for name in arrays.files}))
        except Exception as error:  # a damaged archive raises many classes: zip, header, checksum, length
            warnings.append(f"{path} cannot be read ({error}), saturation leaves it out")
    return [one for kind in KINDS if (one := _of(kind, snapshots)) is not None], warnings


def _of(kind: str, snapshots: Sequence[tuple[int, dict[str, NDArray[Any]]]]) -> Saturation | None:
    names = [f"{kind}.{part}" for part in ("layers", "ranked", "used")]
    whole = [(step, [arrays[name].astype(np.int64) for name in names]) for step, arrays in snapshots
             if all(name in arrays for name in names)]  # fmt: skip
    if not whole:
        return None
    layers, ranked, used = whole[-1][1]
    alike = [(step, arrays[1]) for step, arrays in whole if arrays[1].shape == ranked.shape]
    if len(alike) < 2:
        return None
    share = np.stack([overlap(earlier, ranked, used) for _, earlier in alike], axis=1)  # (L, S)
    random = np.random.default_rng(0)
    shuffled = [overlap(ranked[:, random.permutation(ranked.shape[1])], ranked, used) for _ in range(SHUFFLES)]
    steps = tuple(step for step, _ in alike)
    return Saturation(kind, steps, tuple(layers.tolist()), share, np.mean(shuffled, axis=0), ranked.shape[1])


def overlap(earlier: Ints, ranked: Ints, used: Ints) -> Floats:
    """Return (L,): the share of the first `used` units of `ranked` that are also among the first `used` of `earlier`.

    Args:
        earlier: (L, N, U), units of each token at the earlier step, the most probable first.
        ranked: (L, N, U), the same at the end.
        used: (L, N), how many units each token used at the end.
    """
    inside = np.arange(ranked.shape[2]) < used[:, :, None]  # (L, N, U): ranks that count
    size = 1 + max(int(one.max(initial=0)) for one in (earlier, ranked))

    def members(of: Ints) -> NDArray[np.bool_]:
        """Mark (L, N, size) the units among the ranks that count."""
        chosen = np.zeros((*of.shape[:2], size), bool)
        np.put_along_axis(chosen, of, inside, axis=2)
        return chosen

    both, wanted = (members(earlier) & members(ranked)).sum((1, 2)), used.sum(1)  # (L,)
    return np.asarray(np.divide(both, wanted, out=np.full(len(used), np.nan), where=wanted > 0))
