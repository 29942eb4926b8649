"""The threshold of a routing decision: the level of its layer, moved for each token where a shift is predicted.

N tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..system.collectives import gathered
from .controllers import PIController, QuantileController
from .threshold_config import Controlled

SOFTNESS = 0.1
"""Width of the sigmoid by which a hard decision has a gradient (straight-through), in units of the score."""
EDGE = 1e-6
"""Nearest that a level comes to 0 or 1 when it is moved; the ends themselves mean everything, or only the least."""


class TokenShift(nn.Module):
    """c = reach tanh(w . x + b), or w . x + b where nothing bounds it: how far a token's threshold lies from the level
    of its layer, in logits."""

    def __init__(self, dim: int, reach: float | None) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, D) float32 -> (N, 1) float32"""
        raw = F.linear(x, self.weight.float()[None], self.bias.float()[None])
        return raw if self.reach is None else self.reach * raw.tanh()


def shifted(level: Tensor, shift: Tensor | None) -> Tensor:
    """sigmoid(logit(level) + c), the threshold of each token, in 0..1 like the level: level (), shift (N, 1)."""
    if shift is None:
        return level
    return (level.clamp(EDGE, 1 - EDGE).logit() + shift).sigmoid()


class Thresholded(nn.Module):
    """A router that compares scores with a threshold; `experts`, `heads` and `depth` are its kinds.

    What is *kept* is a number of units a token, `least_units` to `most_units`: experts, heads, or 0 to 1 layer. The
    share kept is of those between the two. The level at which everything is kept is 1 where scores below the level are
    kept (experts, heads), and 0 where those above it are (depth).
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
        """`level` of the layer as the config sets it; `units` (least, wanted, most); `initial` scores of the table."""
        super().__init__()
        self.control, self.set_level, self.keeps_below = control, level, keeps_below
        self.least_units, self.wanted_units, self.most_units = units
        self.sparsity = 1.0
        """0 keeps everything, 1 what was asked for; see `Transformer.set_sparsity`."""
        self.controller = QuantileController(initial, control.ema)
        learned = control.controller == "learned"
        self.level_logit = nn.Parameter(torch.tensor(_logit(level))) if learned else None
        by_layer = control.controller == "pi" and control.scope == "layer"
        self.pi = PIController(level, control.pi_gains) if by_layer else None

    @property
    def target_units(self) -> float:
        """Units a token that the controller holds on average, under the sparsity in force."""
        wanted = self.most_units + self.sparsity * (self.wanted_units - self.most_units)
        return min(max(wanted, self.least_units), self.most_units)

    @property
    def is_budgeted(self) -> bool:
        """Whether a loss holds the average: where something of the threshold is learned and no controller does."""
        uncontrolled = self.control.controller in ("fixed", "learned")
        return uncontrolled and (self.level_logit is not None or self.control.per_token)

    def level(self, shared: PIController | None = None) -> Tensor:
        """The level in force, () float32; `shared` is the controller of all layers, where there is one."""
        table, kind = self.controller.table, self.control.controller
        everything = table.new_tensor(1.0 if self.keeps_below else 0.0)
        if kind in ("fixed", "learned"):
            set_level = table.new_tensor(self.set_level)
            own = set_level if self.level_logit is None else self.level_logit.float().sigmoid()
            return torch.lerp(everything, own, min(self.sparsity, 1.0))
        span = self.most_units - self.least_units
        share = (self.target_units - self.least_units) / span if span else 1.0
        if share >= 1:  # the largest score seen would refuse itself and all above it
            return everything
        if kind == "quantile":
            return self.controller.threshold(share if self.keeps_below else 1 - share)
        pi = shared or self.pi
        assert pi is not None
        return pi.level.clone()

    def observe(self, scores: Tensor, units: Tensor) -> Tensor | None:
        """Shows the controllers a batch: scores (any shape) as the level sees them, and the units each token used (n,).

        Returns:
            How much more must be kept, in units a token, as a change of the level, (); None where there was no token.
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
    """1 where `hard`, else 0, with the gradient of sigmoid((limit - score) / SOFTNESS): straight-through.

    Source: Bengio et al. 2013 (arXiv 1308.3432).
    """
    soft = ((limit - score) / SOFTNESS).sigmoid()
    return hard.float() + soft - soft.detach()


def _logit(share: float) -> float:
    share = min(max(share, 1e-4), 1 - 1e-4)
    return math.log(share / (1 - share))
