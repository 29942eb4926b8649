"""Rotary positions of a model in GGUF: base, rotated share and scaling."""

import math

import numpy as np
from numpy.typing import NDArray

from ...model.config.rope import RopeConfig, RopeScaling
from ..errors import UnsupportedModelError
from ..source import Claims
from .metadata import Metadata

LLAMA3 = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_context": 8192}
"""Scaling of Llama 3.1 to 3.3; the file holds only the divisors that follow from it."""


def rope_of(metadata: Metadata, tensors: Claims, head_dim: int, context: int) -> RopeConfig:
    """Return the rotary positions of a model with heads of width `head_dim`.

    Raises:
        UnsupportedModelError: They are scaled in a way that models here lack.
    """
    rotated = metadata.integer("{}.rope.dimension_count", head_dim)
    if not 0 < rotated <= head_dim or rotated % 2:
        raise UnsupportedModelError(
            f"{metadata.path} rotates {rotated} of {head_dim} components of a head; expected an even number of them"
        )
    theta = metadata.number("{}.rope.freq_base", 10_000.0)
    scaling = _scaling(metadata, tensors, theta, rotated, context)
    return RopeConfig(theta=theta, share=rotated / head_dim, scaling=scaling)


def _scaling(metadata: Metadata, tensors: Claims, theta: float, rotated: int, context: int) -> RopeScaling:
    original = metadata.integer("{}.rope.scaling.original_context_length", context)
    if "rope_freqs.weight" in tensors:
        return scaling_by_divisors(_divisors(tensors, "rope_freqs.weight", rotated), theta, original)
    if "rope_factors_long.weight" in tensors:
        return RopeScaling(
            kind="longrope",
            original_context=original,
            attention_factor=metadata.number("{}.rope.scaling.attn_factor", 1.0),
            short_factors=tuple(_divisors(tensors, "rope_factors_short.weight", rotated)),
            long_factors=tuple(_divisors(tensors, "rope_factors_long.weight", rotated)),
        )
    kind, factor = metadata.text("{}.rope.scaling.type", "none"), metadata.number("{}.rope.scaling.factor", 1.0)
    if kind == "none" or factor in (0.0, 1.0):
        return RopeScaling()
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind == "yarn":
        return RopeScaling(
            kind="yarn",
            factor=factor,
            original_context=original,
            beta_fast=metadata.number("{}.rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=metadata.number("{}.rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=metadata.number("{}.rope.scaling.attn_factor", 1.0) * (0.1 * math.log(factor) + 1),
        )
    raise UnsupportedModelError(
        f"{metadata.path} scales its rotary positions by {kind!r}; expected none, linear, yarn, or divisors "
        "(rope_freqs, rope_factors_long)"
    )


def _divisors(tensors: Claims, name: str, rotated: int) -> list[float]:
    return [float(value) for value in tensors.take(name, (rotated // 2,)).read().float()]


def scaling_by_divisors(divisors: list[float], theta: float, original: int) -> RopeScaling:
    """Return the scaling of Llama 3 if the divisors are its own, otherwise the divisors themselves."""
    factor = max(divisors)
    if factor > 1 and np.allclose(divisors, _llama3_divisors(theta, len(divisors), factor), rtol=1e-4, atol=0):
        return RopeScaling(kind="llama3", factor=factor, **LLAMA3)  # type: ignore[arg-type]  # by name
    values = tuple(divisors)
    return RopeScaling(
        kind="longrope", original_context=original, attention_factor=1.0, short_factors=values, long_factors=values
    )


def _llama3_divisors(theta: float, pairs: int, factor: float) -> NDArray[np.float64]:
    """Return the divisors of the frequencies that Llama 3 has with `factor`."""
    low, high, original = LLAMA3.values()
    turns = original * theta ** (-np.arange(pairs) / pairs) / (2 * math.pi)  # of one wave in the original context
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / factor)
