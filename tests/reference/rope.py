"""Rotary positions of the plain model, one frequency at a time: R rotated components of a head."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adaptive_lm.train.model.config.rope import RopeConfig, RopeScaling


def turned(x: np.ndarray, position: int, rope: RopeConfig | None, context_length: int) -> np.ndarray:
    """Rotate (W,) under RoPE: of the first R components, i and i + R/2 by the angle position * frequency i."""
    if rope is None:
        return x
    R, out = rope.rotated(len(x)), x.copy()
    for i in range(R // 2):
        angle = position * frequency(rope, i, R, context_length)
        cos, sin = (x.dtype.type(value * magnitude(rope.scaling)) for value in (np.cos(angle), np.sin(angle)))
        out[i], out[i + R // 2] = x[i] * cos - x[i + R // 2] * sin, x[i] * sin + x[i + R // 2] * cos
    return out


def frequency(rope: RopeConfig, i: int, R: int, context_length: int) -> float:
    """Return the radians per token by which pair i of R / 2 turns.

    Source: `modeling_rope_utils.py` of transformers, function by function.
    """
    scaling, plain = rope.scaling, rope.theta ** (-2 * i / R)
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "longrope":
        factors = scaling.long_factors if context_length > scaling.original_context else scaling.short_factors
        return plain / factors[i]
    if scaling.kind == "llama3":
        wavelength = 2 * math.pi / plain
        if wavelength < scaling.original_context / scaling.high_frequency_factor:
            return plain
        if wavelength > scaling.original_context / scaling.low_frequency_factor:
            return plain / scaling.factor
        smooth = scaling.original_context / wavelength - scaling.low_frequency_factor
        smooth /= scaling.high_frequency_factor - scaling.low_frequency_factor
        return (1 - smooth) * plain / scaling.factor + smooth * plain
    if scaling.kind == "yarn":
        low, high = (
            R * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), R - 1)
        ramp = min(max((i - low) / (high - low or 0.001), 0), 1)
        return plain / scaling.factor * ramp + plain * (1 - ramp)
    return plain


def magnitude(scaling: RopeScaling) -> float:
    """Return the factor of rotated queries and keys."""
    if scaling.attention_factor is not None or scaling.kind not in ("yarn", "longrope"):
        return scaling.attention_factor or 1.0
    if scaling.kind == "yarn":
        return 1.0 if scaling.factor <= 1 else 0.1 * math.log(scaling.factor) + 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))
