"""The kernels of the compiled library, called through ctypes with numpy arrays."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_lm.runtime.ops import layout
from adaptive_lm.runtime.ops.layout import BLOCK, PRECISIONS, Precision

Floats = NDArray[np.float32]

SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
# `make sanitize` names a library that is built with checks; nothing but these tests reads the variable.
GIVEN = os.environ.get("ADAPTIVE_TEST_LIBRARY")
LIBRARY = Path(GIVEN) if GIVEN else Path(layout.__file__).with_name("adaptive_ops" + SUFFIX)
NAMES = ("avx512vnni", "avx2", "neondot", "neon", "plain")


class Row:
    """A quantised row: codes, scales and sums of each block."""

    def __init__(self, inputs: int) -> None:
        blocks = -(-inputs // BLOCK)
        self.codes = np.full(blocks * BLOCK, 99, np.int8)
        self.scales = np.full(blocks, np.nan, np.float32)
        self.sums = np.full(blocks, -1, np.int32)


class Table:
    """The kernels of one instruction set."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        self._library = library

    def _call(self, function: str, *arguments: Any, result: Any = None) -> Any:
        entry = getattr(self._library, "adaptive_ops_" + function)
        entry.restype = result
        return entry(self.name.encode(), *(_as_c(argument) for argument in arguments))

    def multiply(
        self,
        packed: NDArray[np.uint8],
        precision: Precision,
        outputs: int,
        x: Floats,
        blocks: list[int] | None = None,
        groups: tuple[int, int] | None = None,
        out: Floats | None = None,
    ) -> Floats:
        """Return W x for rows x (N, inputs)."""
        rows, inputs = x.shape
        assert len(packed) == layout.packed_bytes(precision, outputs, inputs)
        padded = np.zeros((rows, -(-inputs // BLOCK) * BLOCK), np.float32)
        padded[:, :inputs] = x
        out = np.full((rows, outputs), np.nan, np.float32) if out is None else out
        first, last = groups or (0, -(-outputs // layout.GROUP))
        index = None if blocks is None else np.array(blocks, np.int32)
        number = 0 if blocks is None else len(blocks)
        self._call(
            "multiply",
            PRECISIONS.index(precision),
            outputs,
            inputs,
            packed,
            padded,
            rows,
            out,
            first,
            last,
            index,
            number,
        )
        return out

    def quantize(self, x: Floats) -> Row:
        """Return one row, quantised; its length is a multiple of 32."""
        row = Row(len(x))
        self._call("quantize", x, len(x), row.codes, row.scales, row.sums)
        return row

    def matrix_row(
        self, packed: NDArray[np.uint8], precision: Precision, outputs: int, inputs: int, output: int
    ) -> Floats:
        into = np.full(inputs, np.nan, np.float32)
        self._call("matrix_row", PRECISIONS.index(precision), outputs, inputs, packed, output, into)
        return into

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        out = np.full_like(x, np.nan)
        self._call("rms_norm", x, weight, eps, out, len(x))
        return out

    def layer_norm(self, x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
        out = np.full_like(x, np.nan)
        self._call("layer_norm", x, weight, bias, eps, out, len(x))
        return out

    def softcap(self, x: Floats, cap: float) -> Floats:
        x = x.copy()
        self._call("softcap", x, cap, len(x))
        return x

    def rotate(self, head: Floats, cos: Floats, sin: Floats) -> Floats:
        turned = head.copy()
        self._call("rotate", turned, cos, sin, len(head))
        return turned

    def dot(self, a: Floats, b: Floats) -> float:
        return float(self._call("dot", a, b, len(a), result=ctypes.c_float))

    def add_scaled(self, y: Floats, x: Floats, factor: float) -> Floats:
        y = y.copy()
        self._call("add_scaled", y, x, factor, len(y))
        return y

    def activate(self, activation: str, gate: Floats, up: Floats | None, factor: float) -> Floats:
        out = np.full_like(gate, np.nan)
        self._call("activate", ACTIVATIONS.index(activation), gate, up, factor, out, len(gate))
        return out

    def sigmoid(self, x: Floats) -> Floats:
        x = x.copy()
        self._call("sigmoid", x, len(x))
        return x

    def exponential(self, x: Floats, factor: float) -> Floats:
        x = x.copy()
        self._call("exponential", x, factor, len(x))
        return x

    def recur(
        self,
        state: Floats,
        w: Floats,
        k: Floats,
        r: Floats,
        a: Floats | None,
        b: Floats | None,
        v: Floats,
        together: int,
    ) -> tuple[Floats, Floats]:
        """Take a state (V, K) through tokens, `together` at a time: -> outputs (T, V), and the state after them."""
        state, out = state.copy(), np.full_like(v, np.nan)
        self._call("recur", w.shape[1], v.shape[1], len(v), together, state, w, k, r, a, b, v, out)
        return out, state

    def convolve(
        self, state: Floats, weight: Floats | None, bias: Floats | None, rows: Floats, together: int, first: int = 0
    ) -> tuple[Floats, Floats]:
        """Convolve rows (T, C) from channel `first` on, `together` at a time: -> outputs, and the inputs (C, K - 1)."""
        state, out = state.copy(), rows.copy()
        channels, width = rows.shape[1], state.shape[1] + 1
        self._call("convolve", channels, width, len(rows), together, weight, bias, state, out, first, channels)
        return out, state

    def softmax(self, x: Floats) -> tuple[Floats, float]:
        x = x.copy()
        return x, float(self._call("softmax", x, len(x), result=ctypes.c_float))


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
"""In the order of the numbers that an attribute states."""


def open_library(path: Path = LIBRARY) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def tables(library: ctypes.CDLL) -> list[Table]:
    """Return the tables that this machine runs, the fastest first; plain C++ is the last."""
    return [Table(library, name) for name in NAMES if library.adaptive_ops_has(name.encode())]


def _as_c(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return argument.ctypes.data_as(ctypes.c_void_p)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return argument if argument is None else ctypes.c_int64(argument)
