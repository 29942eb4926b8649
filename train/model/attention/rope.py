"""Rotary positions: inverse frequencies, tables, rotation. T time, W width of a head, R rotated components of it."""

import math

import torch
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..config.rope import RopeConfig, RopeScaling


def rotary_tables(config: ModelConfig, rope: RopeConfig) -> tuple[Tensor, Tensor]:
    """Return cos and sin times the attention factor, each (context_length, R / 2) float32.

    Source: Su et al. 2021 (arXiv 2104.09864), eq. 34. The scaled ones are those of transformers, in float64.
    """
    width = rope.rotated(config.resolved_head_dim)
    frequencies = rope.theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    if rope.scaling.kind != "none":
        frequencies = scaled(frequencies, rope, config.context_length)
    angles = torch.arange(config.context_length, dtype=torch.float64)[:, None] * frequencies
    factor = attention_factor(rope.scaling)
    return (angles.cos() * factor).float(), (angles.sin() * factor).float()


def scaled(frequencies: Tensor, rope: RopeConfig, context_length: int) -> Tensor:
    """Scale the inverse frequencies (R / 2,) float64, in radians per token, for a context of that many tokens."""
    scaling = rope.scaling
    if scaling.kind == "linear":
        assert scaling.factor is not None
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _by_wavelength(frequencies, scaling)
    if scaling.kind == "yarn":
        return _by_turns(frequencies, rope)
    assert scaling.original_context is not None
    # one choice for every text: keys stay in the cache as they were rotated (decision 0037)
    factors = scaling.long_factors if context_length > scaling.original_context else scaling.short_factors
    return frequencies / torch.tensor(factors, dtype=torch.float64)


def _by_wavelength(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Keep short waves, divide long ones by `factor`, and blend those between."""
    assert scaling.factor is not None
    assert scaling.original_context is not None
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_context * frequencies / (2 * math.pi)  # of one wave in the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # (R / 2,): 0 for long waves, 1 for short ones
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def _by_turns(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Keep the first dimensions, which turn fast, divide the last by `factor`, and blend those between.

    Source: YaRN, Peng et al. 2023 (arXiv 2309.00071), section 3.2. Departs from it as transformers does: the blend is
    linear in the number of the dimension, between whole numbers.
    """
    scaling, pairs = rope.scaling, len(frequencies)
    assert scaling.factor is not None
    assert scaling.original_context is not None
    context = scaling.original_context

    def dimension(turns: float) -> float:  # the pair that turns so often in the original context
        return pairs * math.log(context / (turns * 2 * math.pi)) / math.log(rope.theta)

    first = max(math.floor(dimension(scaling.beta_fast)), 0)
    last = min(math.ceil(dimension(scaling.beta_slow)), 2 * pairs - 1)
    span = last - first if last != first else 0.001
    divided = ((torch.arange(pairs, dtype=torch.float64) - first) / span).clamp(0, 1)
    return divided * frequencies / scaling.factor + (1 - divided) * frequencies


def attention_factor(scaling: RopeScaling) -> float:
    """Return the factor of rotated queries and keys."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind not in ("yarn", "longrope"):
        return 1.0
    assert scaling.factor is not None
    assert scaling.original_context is not None
    if scaling.kind == "yarn":
        return 0.1 * math.log(scaling.factor) + 1
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x (B, heads, T, W) by position with tables (T, R / 2); the first half of R pairs with the second.

    Components from R on stay as they are.
    """
    cos, sin = (table.to(x.dtype) for table in rotary)
    width = 2 * cos.shape[-1]
    first, second = x[..., :width].chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, x[..., width:]], -1)


class RotaryTables(nn.Module):
    """The tables of one kind of rotary positions, which the layers that have it share."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, rope: RopeConfig) -> None:
        super().__init__()
        cos, sin = rotary_tables(config, rope)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, time: int) -> tuple[Tensor, Tensor]:
        """Return the tables of the first `time` positions, each (T, R / 2)."""
        return self.cos[:time], self.sin[:time]
