"""The choice of experts. N tokens, D width, E experts."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sections import FFNConfig
from .threshold_config import levels
from .thresholded_router import Thresholded, TokenShift, keep_gradient, shifted


class Routes(NamedTuple):
    """The decisions of a router for N tokens."""

    router_logits: Tensor  # (N, E) float32
    router_probs: Tensor  # (N, E) float32
    mass_before: Tensor  # (N, E) float32, in order of rank: the probability of all experts ranked higher
    selected_experts: Tensor  # (N, E) bool
    routing_weights: Tensor  # (N, E) float32, 0 where not selected
    shift: Tensor | None = None  # (N, 1) float32: how far a token's threshold is from the level, in logits
    soft_count: Tensor | None = None  # (N,) float32: the experts kept, with a gradient, where a threshold is learned


class Router(Thresholded):
    """Top-p routing: a token takes experts in order of probability until they reach the mass `router_top_p`.

        P = softmax(W x);  selected = {k : sum of P ranked before k < router_top_p};  g_k = P_k / sum of selected P

    The first expert is always taken; the threshold may be moved for each token. `top_k` is the fixed baseline. Source:
    Huang et al. 2024 (arXiv 2403.07652), eq. 3-5. Departs from it: the weights are renormalised (measured better), and
    the threshold is not constant. A controller holds it so that a layer uses `experts_per_token` on average, by default
    by quantiles: of the E - 1 ranks after the first, a share (experts_per_token - 1) / (E - 1) has a mass before it
    below the threshold.
    """

    def __init__(self, dim: int, config: FFNConfig, layer: int = 0, num_layers: int = 1) -> None:
        uniform = torch.arange(1, config.num_experts) / config.num_experts
        units = (1.0, config.experts_per_token, float(config.num_experts))
        super().__init__(config, levels(config.router_top_p, num_layers)[layer], units, uniform)
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, dim))  # (E, D)
        self.per_token = TokenShift(dim, config.per_token_reach) if config.per_token else None

    def forward(self, x: Tensor, router_top_p: Tensor) -> Routes:
        """Choose experts for x (N, D) at the level router_top_p (), in float32 even under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            router_logits = x @ self.weight.float().t()  # (N, E)
            router_probs = router_logits.softmax(-1)  # (N, E)
            shift = self.per_token(x) if self.per_token is not None else None  # (N, 1)
            limit = shifted(router_top_p, shift)
            ranked, expert = router_probs.sort(dim=-1, descending=True, stable=True)  # (N, E)
            mass_before = F.pad(ranked.cumsum(-1)[:, :-1], (1, 0))  # (N, E); 0 for the first, which is always kept
            place = torch.arange(self.config.num_experts, device=x.device)
            if self.config.routing == "top_k":
                count = int(self.config.experts_per_token)
                last = torch.full_like(expert[:, :1], count - 1)  # (N, 1), of the ranks kept
            else:
                # 1 keeps every expert, also where float32 rounds the mass before the last ones to 1
                below = (mass_before < limit) | (router_top_p >= 1)  # (N, E): a token's first ones, or none
                last = below.sum(-1, keepdim=True).clamp(min=1) - 1
            # Select those ranked no lower than the last rank kept, in order of expert. A scatter of the ranks gives the
            # same, but is slower than the sort when compiled. NaN selects all experts, so that it cannot go unnoticed.
            edge, at_edge = ranked.gather(-1, last), expert.gather(-1, last)  # (N, 1)
            selected = ~((router_probs < edge) | ((router_probs == edge) & (place > at_edge)))  # (N, E)
            weights, soft_count = torch.where(selected, router_probs, 0.0), None
            if self.level_logit is None and shift is None:
                mass_before = mass_before.detach()  # or its gradient, which is zero, would be computed
            else:
                kept_ranks = place <= last  # (N, E)
                gate = keep_gradient(kept_ranks, mass_before, limit)[:, 1:]  # (N, E - 1)
                gate = torch.cat([torch.ones_like(gate[:, :1]), gate], -1)
                soft_count = gate.sum(-1)
                weights = weights * torch.zeros_like(gate).scatter(-1, expert, gate)
            if self.config.renormalize:
                weights = weights / weights.sum(-1, keepdim=True)
        return Routes(router_logits, router_probs, mass_before, selected, weights, shift, soft_count)

    def observe_routes(self, routes: Routes, shown: Tensor) -> Tensor | None:
        """Show the controllers the tokens of `shown` (N,) bool; return the error of `observe`.

        The first rank is always taken, so it is left out.
        """
        scores = shifted(routes.mass_before, None if routes.shift is None else -routes.shift)
        return self.observe(scores[shown][:, 1:], routes.selected_experts[shown].sum(-1))
