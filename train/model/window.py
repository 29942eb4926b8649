"""How far a layer looks back. B batch, T time, D width. A window of w tokens is the token itself and w - 1 before it.

Places are counted in the tokens that the layer holds: where skipped tokens leave no keys, they are not counted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .config import ModelConfig
from .sections import AttentionConfig

LEVELS = 15
"""Sizes of a learned window: few, so that few tokens stand near an edge; odd, so that a score of 1/2, from which a
router starts, stands on none. The ends of the score are no edges, so one that saturates is decided too."""


def window_by_length(config: ModelConfig, layer: int) -> npt.NDArray[np.int64]:
    """The window of a token that is the n-th its layer holds, (context_length,) for n = 1, 2, ...

    min(max(ceil(share n), least), most)
    """
    so_far = np.arange(1, config.context_length + 1)
    share = np.ceil(config.attention.window_share * so_far).astype(np.int64)
    windows: npt.NDArray[np.int64] = share.clip(config.attention.window_least, config.window_of(layer))
    return windows


def window_levels(config: ModelConfig, layer: int) -> npt.NDArray[np.int64]:
    """The learned window of each level, (LEVELS,): from the least to the most in even steps, rounded down."""
    least, most = config.attention.window_least, config.window_of(layer)
    return least + np.arange(LEVELS) * (most - least) // (LEVELS - 1)


def level_of(scores: Tensor) -> Tensor:
    """min(floor(15 score), 14): scores (...) in 0..1 -> (...) int64"""
    return (LEVELS * scores).long().clamp(max=LEVELS - 1)


class WindowRouter(nn.Module):
    """A score of the token, sigmoid(w . x + b), says how far it looks back between the least and the most.

    While training the edge is a ramp around z = least + (most - least) score, through which the score has a gradient:
    a key at distance d counts min(max((z - d) / ramp + 1/2, 0), 1). At inference it is hard, at the level
    floor(15 score). Source: Adaptive Attention Span, Sukhbaatar et al. 2019 (arXiv 1905.07799), eq. 2-4 and the dynamic
    span of section 2.2. Departs from it: the ramp is centred on z, so that the hard edge cuts it in the middle.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) normed -> scores (B, T) float32"""
        with torch.autocast(x.device.type, enabled=False):
            scores: Tensor = (x.float() @ self.weight.float() + self.bias.float()).sigmoid()
            return scores


class WindowController(nn.Module):
    """Holds the window of a layer at a multiple of the tokens that its attention spreads over, exp(entropy).

    One number a layer, constant in a forward pass: what attention did in the batches before, so it is causal.

    Buffers (all part of the checkpoint):
        spread: () float32, moving average of exp(entropy). window: () int64. num_updates: () int64.
    """

    spread: Tensor
    window: Tensor
    num_updates: Tensor

    def __init__(self, config: AttentionConfig, most: int) -> None:
        super().__init__()
        self.least, self.most, self.factor = config.window_least, most, config.window_factor
        self.register_buffer("spread", torch.tensor(most / config.window_factor))
        self.register_buffer("window", torch.tensor(most))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, spread: Tensor) -> None:
        """spread (n,): exp(entropy) of each token's attention, a mean over its heads."""
        if not len(spread):
            return
        self.spread.lerp_(spread.float().mean(), 0.1)
        self.window.copy_((self.factor * self.spread).ceil().long().clamp(self.least, self.most))
        self.num_updates += 1


def places_of(present: Tensor | None, like: Tensor) -> Tensor:
    """present (B, T) bool, the tokens whose keys the layer holds, None for all; like (B, T, D) -> places (B, T)."""
    if present is None:
        return torch.arange(like.shape[1], device=like.device).expand(like.shape[:2])
    return present.long().cumsum(-1) - 1
