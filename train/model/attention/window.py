"""Windows: the number of tokens that a layer attends to. B batch, T time, D width, n tokens.

A window of w tokens is the token itself and the w - 1 before it. Places count the tokens that the layer holds: skipped
tokens that leave no keys are not counted.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..config.sections import AttentionConfig

LEVELS = 15
"""Number of sizes of a learned window: few, so that few tokens are near an edge between two; odd, so that the score
1/2, from which a router starts, is not on an edge. Scores of 0 and 1 are not edges either."""


def window_by_length(config: ModelConfig, layer: int) -> npt.NDArray[np.int64]:
    """Return the window of the n-th token that a layer holds, (context_length,) for n = 1, 2, ...

    window = min(max(ceil(share n), least), most)
    """
    so_far = np.arange(1, config.context_length + 1)
    share = np.ceil(config.attention.window_share * so_far).astype(np.int64)
    windows: npt.NDArray[np.int64] = share.clip(config.attention.window_least, config.window_of(layer))
    return windows


def window_levels(config: ModelConfig, layer: int) -> npt.NDArray[np.int64]:
    """Return the learned window of each level, (LEVELS,): from least to most in even steps, rounded down."""
    least, most = config.attention.window_least, config.window_of(layer)
    return least + np.arange(LEVELS) * (most - least) // (LEVELS - 1)


def level_of(scores: Tensor) -> Tensor:
    """Return the level min(floor(15 score), 14) of scores (...) in 0..1, (...) int64."""
    return (LEVELS * scores).long().clamp(max=LEVELS - 1)


class WindowRouter(nn.Module):
    """A score of the token, sigmoid(w . x + b), that sets its window between the least and the most.

    In training the edge is a ramp around z = least + (most - least) score, which gives the score its gradient: a key at
    distance d counts min(max((z - d) / ramp + 1/2, 0), 1). At inference the edge is hard, at the level floor(15 score).
    Source: Adaptive Attention Span, Sukhbaatar et al. 2019 (arXiv 1905.07799), eq. 2-4 and the dynamic span of section
    2.2. Departs from it: the ramp is centred on z, so that the hard edge is in its middle.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of normed x (B, T, D), (B, T) float32."""
        with torch.autocast(x.device.type, enabled=False):
            scores: Tensor = (x.float() @ self.weight.float() + self.bias.float()).sigmoid()
            return scores


class WindowController(nn.Module):
    """Hold the window of a layer at a multiple of exp(entropy), the number of tokens that its attention spreads over.

    It is one number per layer, constant in a forward pass. It follows from earlier batches, so it is causal.
    """

    spread: Tensor
    """() float32, moving average of exp(entropy). A buffer, part of the checkpoint."""
    window: Tensor
    """() int64, the window in tokens. A buffer, part of the checkpoint."""
    num_updates: Tensor
    """() int64, the number of batches seen. A buffer, part of the checkpoint."""

    def __init__(self, config: AttentionConfig, most: int) -> None:
        super().__init__()
        self.least, self.most, self.factor = config.window_least, most, config.window_factor
        self.register_buffer("spread", torch.tensor(most / config.window_factor))
        self.register_buffer("window", torch.tensor(most))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, spread: Tensor) -> None:
        """Move the window by a batch: spread (n,) is exp(entropy) of each token's attention, a mean over its heads."""
        if not len(spread):
            return
        self.spread.lerp_(spread.float().mean(), 0.1)
        self.window.copy_((self.factor * self.spread).ceil().long().clamp(self.least, self.most))
        self.num_updates += 1


def places_of(present: Tensor | None, like: Tensor) -> Tensor:
    """Return the place of each token among those that the layer holds, (B, T).

    Args:
        present: (B, T) bool, the tokens whose keys the layer holds; None for all.
        like: (B, T, D), gives shape and device.
    """
    if present is None:
        return torch.arange(like.shape[1], device=like.device).expand(like.shape[:2])
    return present.long().cumsum(-1) - 1
