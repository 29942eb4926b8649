"""The order of windows: pure functions of seed and number, so that a resumed run continues exactly without any state.

The arithmetic is on 64-bit integers, not by the generator of a library, whose numbers may change between versions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MASK64 = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROUNDS = 6


def mix(*values: int) -> int:
    """Hash integers to 64 bits: SplitMix64 (Steele et al. 2014), one value per round."""
    state = 0
    for value in values:
        state = (state + value + _GOLDEN) & _MASK64
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK64
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK64
        state ^= state >> 31
    return state


def permuted(index: int, length: int, key: int) -> int:
    """Permute `index` by the permutation of 0..length-1 that `key` chooses, in constant memory.

    A Feistel network over the smallest even number of bits that holds `length`. A result outside is permuted again
    until it is inside (cycle walking: Black and Rogaway 2002, "Ciphers with arbitrary finite domains"), at most four
    steps on average.
    """
    assert 0 <= index < length
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for number in range(_ROUNDS):
            left, right = right, left ^ (mix(key, number, right) & low)
        index = (left << half) | right
        if index < length:
            return index


def shuffled(length: int, key: int) -> NDArray[np.int64]:
    """Return 0..length-1 in the order that `key` chooses: (length,)."""
    state = np.arange(length, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    return np.argsort(state ^ (state >> np.uint64(31)), kind="stable").astype(np.int64)


class Mixture:
    """Deals numbered windows to sources so that at any moment each has had its share, to within two windows.

    Source 0 gets window k when floor((k + 1) w + 1/2) > floor(k w + 1/2); the others share the rest in the same way.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        left = [sum(weights[index:]) for index in range(len(weights))]
        self._shares = [weight / rest if rest else 0.0 for weight, rest in zip(weights, left, strict=True)]

    def deal(self, number: int) -> tuple[int, int]:
        """Return the source of window `number`, and the count of windows that this source had before it."""
        for source, share in enumerate(self._shares[:-1]):
            before, after = int(number * share + 0.5), int((number + 1) * share + 0.5)
            if after > before:
                return source, before
            number -= before
        return len(self._shares) - 1, number

    def counts(self, number: int) -> list[int]:
        """Count the windows of each source among the first `number` windows."""
        counts = []
        for share in self._shares[:-1]:
            counts.append(int(number * share + 0.5))
            number -= counts[-1]
        return [*counts, number]


class MovingMixture:
    """A mixture whose weights change in the course of a run.

    It deals as a `Mixture` from the last change on, where each source goes on after the windows that it had before. So
    no window is repeated and none left out. Each length of windows is a series of its own.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = list(weights)
        self._mixture = Mixture(weights)
        self._begins: dict[int, tuple[int, list[int]]] = {}
        """Length -> the first window since the last change, and the windows of each source before it."""

    def deal(self, number: int, length: int) -> tuple[int, int]:
        """Return the source of window `number`, and the count of windows that this source had before it."""
        first, before = self._begins.get(length, (0, [0] * len(self.weights)))
        assert number >= first, "the window is older than the last change of the weights"
        source, place = self._mixture.deal(number - first)
        return source, before[source] + place

    def change(self, weights: Sequence[float], read: Mapping[int, int]) -> None:
        """Change the weights; `read` maps each length to the number of its windows that were read."""
        for length, number in read.items():
            first, before = self._begins.get(length, (0, [0] * len(self.weights)))
            dealt = self._mixture.counts(number - first)
            self._begins[length] = (number, [had + more for had, more in zip(before, dealt, strict=True)])
        self.weights, self._mixture = list(weights), Mixture(weights)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"weights": self.weights, "begins": {str(length): list(at) for length, at in self._begins.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.weights = list(state["weights"])
        self._mixture = Mixture(self.weights)
        self._begins = {int(length): (first, list(before)) for length, (first, before) in state["begins"].items()}


def uniform(count: int, key: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that `key` chooses: (count,)."""
    state = np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(mix(key))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    return np.asarray((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
