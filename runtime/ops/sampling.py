"""The compiled choice of a token: the function of `src/sampling/sample.cpp`, which needs no ONNX Runtime.

n tokens.
"""

import ctypes
import functools
import math
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .library import PATH, PATH_VARIABLE

NOT_FINITE = -1
OTHER_VERSION = -2
PROBE = (56, 63, 55, 63, 52, 55, 56, 39)
"""Tokens that the library must draw when it is loaded."""


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """Settings of a draw, compiled or portable."""

    n: int
    """The number of tokens."""
    rate: float
    """log2(e) / temperature."""
    top_k: int
    """1 to n; n keeps all."""
    top_p: float
    """The filter of `Sampling`; 1 keeps all."""
    min_p: float
    """The filter of `Sampling`; 0 keeps all."""
    penalty: float
    """The repetition penalty of `Sampling`; 1 changes nothing."""
    seed: int
    """First state of the random numbers."""


class Settings(ctypes.Structure):
    """The struct of the same name in `sample.cpp`, which says what the fields are."""

    _fields_ = (
        ("size", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_float),
        ("rate", ctypes.c_float),
        ("penalty", ctypes.c_float),
        ("num_seen", ctypes.c_int32),
        ("seen", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("state", ctypes.c_uint64),
        ("num_shifted", ctypes.c_int64),
        ("shifted", ctypes.c_void_p),
        ("shifts", ctypes.c_void_p),
        ("allowed", ctypes.c_void_p),
    )


class Changes(NamedTuple):
    """Changes of the logits before a draw, in this order."""

    seen: NDArray[np.int32]
    """Ids to which the repetition penalty applies, each once."""
    shifted: NDArray[np.int32]
    """Ids to whose logits `shifts` are added, each once."""
    shifts: NDArray[np.float32]
    allowed: NDArray[np.uint32] | None = None
    """A bit for each token, the lowest of the first word first; tokens whose bit is 0 are never drawn. None: all."""


NO_CHANGES = Changes(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))


def table_shape(n: int) -> tuple[int, int]:
    """Return rows and columns of the table in which the tokens stand: about 128 rows, columns a multiple of 16."""
    columns = 16 * max(math.ceil(n / 2048), 1)
    return math.ceil(n / columns), columns


class CompiledDraw:
    """Draws tokens with the compiled function.

    Args:
        function: `adaptive_ops_sample`.
        settings: Number of tokens, filters and seed.
    """

    def __init__(self, function: Any, settings: DrawSettings) -> None:
        rows, columns = table_shape(settings.n)
        self._n = settings.n
        self._space = [np.empty(size, np.float32) for size in (rows * columns, rows * columns, columns)]
        scores, weights, sums = (array.ctypes.data for array in self._space)
        self._settings = Settings(
            size=ctypes.sizeof(Settings), tokens=settings.n, columns=columns, top_k=settings.top_k,
            top_p=settings.top_p, min_p=settings.min_p, rate=settings.rate, penalty=settings.penalty,
            scores=scores, weights=weights, sums=sums, state=settings.seed,
        )  # fmt: skip
        self._function, self._address = function, ctypes.addressof(self._settings)

    def __call__(self, logits: NDArray[np.float32], changes: Changes = NO_CHANGES) -> int | None:
        """Return the next token from logits (n,), None if they are not finite numbers or no token is allowed."""
        logits = np.ascontiguousarray(logits, np.float32)
        if len(logits) != self._n:
            raise ValueError(f"found {len(logits)} logits, expected {self._n}")
        if changes is NO_CHANGES:
            token = self._function(self._address, logits.ctypes.data)
        else:
            token = self._changed(logits, changes)
        return None if token == NOT_FINITE else int(token)

    def _changed(self, logits: NDArray[np.float32], changes: Changes) -> Any:
        """Call the function with settings that point at the changes for as long as it runs."""
        settings = self._settings
        if len(changes.seen):
            seen = np.ascontiguousarray(changes.seen, np.int32)
            settings.seen, settings.num_seen = seen.ctypes.data, len(seen)
        if len(changes.shifted):
            shifted = np.ascontiguousarray(changes.shifted, np.int32)
            shifts = np.ascontiguousarray(changes.shifts, np.float32)
            settings.shifted, settings.shifts = shifted.ctypes.data, shifts.ctypes.data
            settings.num_shifted = len(shifted)
        if changes.allowed is not None:
            allowed = np.ascontiguousarray(changes.allowed, np.uint32)
            if 32 * len(allowed) < self._n:
                raise ValueError(f"found a mask of {32 * len(allowed)} bits, expected at least {self._n}")
            settings.allowed = allowed.ctypes.data
        token = self._function(self._address, logits.ctypes.data)
        settings.num_seen, settings.num_shifted, settings.allowed = 0, 0, None
        return token


@functools.cache
def compiled_function() -> Any | None:
    """Return the function of the library beside this file; None where there is none that works.

    The library does not come from a model, and the portable draw gives the same tokens, so nothing is lost but time.
    """
    try:
        function = ctypes.CDLL(str(os.environ.get(PATH_VARIABLE, PATH))).adaptive_ops_sample
    except (OSError, AttributeError):
        return None
    function.restype, function.argtypes = ctypes.c_int64, (ctypes.c_void_p, ctypes.c_void_p)
    settings = DrawSettings(n=65, rate=1, top_k=40, top_p=0.9, min_p=0.01, penalty=1.5, seed=1)
    probe = CompiledDraw(function, settings)
    ids = np.arange(56, 64, dtype=np.int32)
    shifts, allowed = np.array([1, -1, 0.5, -2], np.float32), np.array([0xFFFFFFFF, 0xFBFFFFFF, 1], np.uint32)
    changes = Changes(ids[4:6], ids[::2], shifts, allowed)
    logits = np.arange(65, dtype=np.float32) / np.float32(8)
    return function if all(probe(logits, changes) == token for token in PROBE) else None
