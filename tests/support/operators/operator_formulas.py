"""The formulas of the operators in plain numpy and float64, one token at a time.

D width, E experts, F hidden, V vocabulary. Weights are float32 before packing: (E, 2F, D), (E, D, F).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from reference.routing import choose_best, choose_by_mass, rms_norm, sigmoid, softmax

from adaptive_lm.runtime.ops.layout import BLOCK, Precision, rounded

Array = NDArray[Any]
EDGE = 1e-6
# an int8 value that rounds the other way moves an output by up to one step of the row times a weight
TOLERANCE = {"fp32": 2e-6, "bf16": 2e-6, "int8": 1e-2, "int4": 1e-2}


class Experts(NamedTuple):
    """A stack of experts and their precision."""

    gate_up: Array  # (E, 2F, D)
    down: Array  # (E, D, F)
    precision: Precision


def quantized(x: Array) -> Array:
    """Return the values that an int8 row stands for: blocks of 32 with the greatest magnitude at 127."""
    blocks = np.pad(np.asarray(x, np.float32), (0, -len(x) % BLOCK)).reshape(-1, BLOCK)
    greatest = np.abs(blocks).max(-1, keepdims=True)
    factor = np.divide(np.float32(127), greatest, out=np.zeros_like(greatest), where=greatest > 0)
    return (np.rint(blocks * factor).astype(np.float64) * (greatest / np.float32(127))).reshape(-1)[: len(x)]


def product(weight: Array, x: Array, precision: Precision) -> Array:
    """Compute W x as a packed product does."""
    wide = quantized(x) if precision in ("int8", "int4") else x.astype(np.float64)
    return np.asarray(rounded(weight, precision).astype(np.float64) @ wide)


def run_expert(experts: Experts, number: int, x: Array) -> Array:
    """Compute (silu(x Wg) * (x Wu)) Wd."""
    gate, up = np.split(product(experts.gate_up[number], x, experts.precision), 2)
    return product(experts.down[number], gate * sigmoid(gate) * up, experts.precision)


def shifted(level: float, logit: float, reach: float) -> float:
    """Move a level by reach tanh(logit), in logits."""
    inside = min(max(level, EDGE), 1 - EDGE)
    return float(sigmoid(np.log(inside / (1 - inside)) + reach * np.tanh(logit)))


def choose(probs: Array, routing: str, level: float, count: int) -> list[int]:
    """Return the chosen experts."""
    return (choose_best(probs, count) if routing == "top_k" else choose_by_mass(probs, level)).chosen


def feed_forward(
    h: Array, norm: Array, eps: float, router: Array, chosen: list[int], experts: Experts, renormalize: bool
) -> Array:
    """Compute h + sum over the chosen e of g_e E_e(norm(h)), without the shared expert."""
    z = rms_norm(h.astype(np.float64), eps, norm)
    probs = softmax(router @ z)
    total = probs[chosen].sum() if renormalize else 1.0
    return np.asarray(h + sum(probs[e] / total * run_expert(experts, e, z) for e in chosen))


def normal(*shape: int, seed: int = 0) -> Array:
    """Return normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(result: Array, expected: Array, precision: Precision) -> None:
    """Compare a result with the formula, as closely as the precision allows."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE[precision] * scale)
    # one value may round the other way, not all of them
    assert np.sqrt(np.mean((result - expected) ** 2)) < TOLERANCE[precision] / 4 * scale
