"""The threshold of a routing decision: the level of its layer, moved for each token where a shift is predicted.

N tokens, D width, n of the tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...system.collectives import gathered
from ..config.thresholds import Controlled
from .controllers import PIController, QuantileController

SOFTNESS = 0.1
"""Width, in units of the score, of the sigmoid that gives a hard decision its gradient (straight-through)."""
EDGE = 1e-6
"""Least distance of a level from 0 and 1 when it is moved; 0 and 1 themselves mean everything, or only the least."""


class TokenShift(nn.Module):
    """The distance in logits of a token's threshold from the level of its layer.

    c = reach tanh(w . x + b), or c = w . x + b without a reach
    """

    def __init__(self, dim: int, reach: float | None) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Predict the shift of x (N, D) float32 -> (N, 1) float32."""
        raw = F.linear(x, self.weight.float()[None], self.bias.float()[None])
        return raw if self.reach is None else self.reach * raw.tanh()


def shifted(level: Tensor, shift: Tensor | None) -> Tensor:
    """Return the threshold of each token, sigmoid(logit(level) + c), 0..1: level (), shift c (N, 1) or None."""
    if shift is None:
        return level
    return (level.clamp(EDGE, 1 - EDGE).logit() + shift).sigmoid()


class Thresholded(nn.Module):
    """A router that compares scores with a threshold, for experts, heads or depth.

    A token keeps a number of units, from `least_units` to `most_units`: experts, heads, or 0 to 1 layer. Shares are of
    the units between the two. The level that keeps everything is 1 where scores below the level are kept (experts,
    heads), and 0 where those above it are (depth).
    """

    def __init__(
        self,
        control: Controlled,
        level: float,
        units: tuple[float, float, float],
        initial: Tensor,
        *,
        keeps_below: bool = True,
    ) -> None:
        """Create the controllers.

        Args:
            control: How the level is controlled.
            level: The level of this layer in the config.
            units: Units per token: least, wanted average, most.
            initial: Scores from which the quantile table starts.
            keeps_below: Whether scores below the level are kept, or those from it on.
        """
        super().__init__()
        self.control, self.set_level, self.keeps_below = control, level, keeps_below
        self.least_units, self.wanted_units, self.most_units = units
        self.sparsity = 1.0
        """0 keeps everything, 1 the wanted average; see `Transformer.set_sparsity`."""
        self.controller = QuantileController(initial, control.ema)
        learned = control.controller == "learned"
        self.level_logit = nn.Parameter(torch.tensor(_logit(level))) if learned else None
        by_layer = control.controller == "pi" and control.scope == "layer"
        self.pi = PIController(level, control.pi_gains) if by_layer else None

    @property
    def target_units(self) -> float:
        """Average units per token that the controller holds, at the current sparsity."""
        wanted = self.most_units + self.sparsity * (self.wanted_units - self.most_units)
        return min(max(wanted, self.least_units), self.most_units)

    @property
    def is_budgeted(self) -> bool:
        """Whether a loss holds the average: part of the threshold is learned, and no controller holds it."""
        uncontrolled = self.control.controller in ("fixed", "learned")
        return uncontrolled and (self.level_logit is not None or self.control.per_token)

    def level(self, shared: PIController | None = None) -> Tensor:
        """Return the current level, () float32; `shared` is the controller of all layers, where there is one."""
        table, kind = self.controller.table, self.control.controller
        everything = table.new_tensor(1.0 if self.keeps_below else 0.0)
        if kind in ("fixed", "learned"):
            set_level = table.new_tensor(self.set_level)
            own = set_level if self.level_logit is None else self.level_logit.float().sigmoid()
            return torch.lerp(everything, own, min(self.sparsity, 1.0))
        span = self.most_units - self.least_units
        share = (self.target_units - self.least_units) / span if span else 1.0
        if share >= 1:  # the largest score seen would exclude itself and all above it
            return everything
        if kind == "quantile":
            return self.controller.threshold(share if self.keeps_below else 1 - share)
        pi = shared or self.pi
        assert pi is not None
        return pi.level.clone()

    def observe(self, scores: Tensor, units: Tensor) -> Tensor | None:
        """Show the controllers a batch.

        Args:
            scores: The scores that the level is compared with, of any shape.
            units: (n,), the units that each token used.

        Returns:
            The error in units per token, with the sign of the change of level that it needs, (); None without tokens.
        """
        scores, units = gathered(scores), gathered(units.float())
        self.controller.observe(scores.clamp(max=1 - 2**-20))  # 1 itself means everything
        if not len(units):
            return None
        missing = self.target_units - units.mean()
        error = missing if self.keeps_below else -missing
        if self.pi is not None:
            self.pi.observe(error)
        return error


def keep_gradient(hard: Tensor, score: Tensor, limit: Tensor) -> Tensor:
    """Return 1 where `hard`, else 0, with the gradient of sigmoid((limit - score) / SOFTNESS).

    Source: the straight-through estimator, Bengio et al. 2013 (arXiv 1308.3432).
    """
    soft = ((limit - score) / SOFTNESS).sigmoid()
    return hard.float() + soft - soft.detach()


def _logit(share: float) -> float:
    share = min(max(share, 1e-4), 1 - 1e-4)
    return math.log(share / (1 - share))
