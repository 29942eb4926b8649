"""Which window comes when: pure functions of seed and number, so that a resumed run needs no state to go on exactly."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_MASK64 = (1 << 64) - 1


def mix(*values: int) -> int:
    """A well-stirred 64-bit number from integers (SplitMix64's finaliser, Steele et al. 2014, after each)."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def permuted(indices: NDArray[np.int64], length: int, key: int) -> NDArray[np.int64]:
    """Where a permutation of 0..length-1, chosen by `key`, sends `indices`; nothing of size `length` is made.

    A Feistel network over the smallest even number of bits that holds `length`; what falls outside walks on until it is
    inside (cycle walking: Black and Rogaway 2002, "Ciphers with arbitrary finite domains"), at most four steps on average.
    """
    half = max(1, (max(1, length - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = [np.uint64(mix(key, number)) for number in range(_ROUNDS)]
    values = indices.astype(np.uint64)
    walking = np.ones(values.shape, dtype=bool)
    while walking.any():
        left, right = values[walking] >> np.uint64(half), values[walking] & low
        for round_key in keys:
            stirred = (right ^ round_key) * np.uint64(0xBF58476D1CE4E5B9)
            stirred = (stirred ^ (stirred >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((stirred ^ (stirred >> np.uint64(32))) & low)
        values[walking] = (left << np.uint64(half)) | right
        walking = values >= np.uint64(length)
    return values.astype(np.int64)


def shuffled(length: int, key: int) -> NDArray[np.int64]:
    """The whole permutation."""
    return permuted(np.arange(length, dtype=np.int64), length, key)


class Mixture:
    """Deals numbered windows to sources so that at any moment each has had its share, to within one window per source.

    Source 0 gets window k when floor((k + 1) w + 1/2) > floor(k w + 1/2); the others share what it leaves in the same way.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        left = [sum(weights[index:]) for index in range(len(weights))]
        self._shares = [weight / rest for weight, rest in zip(weights, left, strict=True)]

    def deal(self, number: int) -> tuple[int, int]:
        """The source of window `number`, and how many windows that source had before it."""
        for source, share in enumerate(self._shares[:-1]):
            before, after = int(number * share + 0.5), int((number + 1) * share + 0.5)
            if after > before:
                return source, before
            number -= before
        return len(self._shares) - 1, number
