"""The memory floor: decoding reads every weight that it uses once per token, so it is no faster than memory is read.

The bandwidth is measured: numpy reduces a buffer as large as the model's weights (so that a model which fits into the
cache is compared with the cache) with as many threads as the session; the best of several reductions counts. numpy may
itself be slower than the memory, above all in cache; then the floor and the share reached look better than they are.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 512 * 2**20
"""Bytes of the largest buffer: beyond any cache, and no more than a small machine can spare."""
SMALLEST = 2**20
"""Bytes of the smallest buffer."""
AT_LEAST = 256 * 2**20
"""Bytes read per timing, so that the start of the threads does not count."""
ROUNDS = 5
"""Timings of each reduction."""
# Both are vectorised and release the GIL; which one is faster depends on the processor.
REDUCTIONS: tuple[Callable[[NDArray[np.int64]], Any], ...] = (np.bitwise_or.reduce, np.max)


@dataclass(frozen=True)
class Bandwidth:
    """Measured rate of reading a buffer of `buffer_bytes` repeatedly with `threads` threads."""

    bytes_per_second: float
    buffer_bytes: int
    threads: int


def read_bandwidth(size: int, threads: int) -> Bandwidth:
    """Measure the best rate of reading a buffer of about `size` bytes, split between `threads`."""
    size = min(max(size, SMALLEST), LARGEST)
    parts = np.array_split(np.ones(size // 8, np.int64), threads)
    passes = max(1, AT_LEAST // size)
    best = 0.0

    def read(part: NDArray[np.int64], reduce: Callable[[NDArray[np.int64]], Any]) -> None:
        for _ in range(passes):
            reduce(part)

    with ThreadPoolExecutor(threads) as pool:
        for reduce in REDUCTIONS:
            for _ in range(ROUNDS):
                begin = time.perf_counter()
                list(pool.map(read, parts, [reduce] * threads))
                best = max(best, passes * size / (time.perf_counter() - begin))
    return Bandwidth(best, size, threads)


def floor_seconds(executed_bytes: float, bandwidth: Bandwidth) -> float:
    """Return the least time in which `executed_bytes` (weights and KV cache of one token) can be read."""
    return executed_bytes / bandwidth.bytes_per_second
