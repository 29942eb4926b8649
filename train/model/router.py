"""Which experts a token uses. N tokens, D width, E experts."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import FFNConfig
from .controller import QuantileController


class Routes(NamedTuple):
    """What a router decided for N tokens."""

    router_logits: Tensor  # (N, E) float32
    router_probs: Tensor  # (N, E) float32
    mass_before: Tensor  # (N, E) float32, in order of rank: the probability of all experts ranked higher
    selected_experts: Tensor  # (N, E) bool
    routing_weights: Tensor  # (N, E) float32, 0 where not selected


class Router(nn.Module):
    """Top-p routing: a token takes experts in order of probability until they hold the mass `router_top_p`.

        P = softmax(W x);  selected = {k : sum of P ranked before k < router_top_p};  g_k = P_k / sum of selected P

    The first expert is always taken. Source: Huang et al. 2024 (arXiv 2403.07652), eq. 3-5.
    Departs from it: the weights are renormalised (measured better), and the threshold is not a constant but held by a
    quantile controller so that a layer uses `experts_per_token` on average: of the E - 1 ranks that could be refused,
    a share (experts_per_token - 1) / (E - 1) has a mass before it under that quantile. `top_k` is the fixed baseline.
    """

    def __init__(self, dim: int, config: FFNConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, dim))  # (E, D)
        uniform = torch.arange(1, config.num_experts) / config.num_experts
        self.controller = QuantileController(uniform, config.ema)

    def default_top_p(self) -> Tensor:
        """The threshold in force, () float32."""
        if self.config.controller == "fixed":
            return self.controller.table.new_tensor(self.config.router_top_p)
        if self.config.experts_per_token == self.config.num_experts:
            return self.controller.table.new_tensor(1.0)  # the largest mass seen would refuse itself and all above it
        return self.controller.threshold((self.config.experts_per_token - 1) / (self.config.num_experts - 1))

    def forward(self, x: Tensor, router_top_p: Tensor) -> Routes:
        """x (N, D), router_top_p () -> Routes. Always in float32, whatever autocast says."""
        with torch.autocast(x.device.type, enabled=False):
            router_logits = x.float() @ self.weight.float().t()  # (N, E)
            router_probs = router_logits.softmax(-1)  # (N, E)
            ranked, expert = router_probs.sort(dim=-1, descending=True, stable=True)  # (N, E)
            mass_before = F.pad(ranked.cumsum(-1)[:, :-1], (1, 0))  # (N, E); 0 for the first, which is always kept
            if self.config.routing == "top_k":
                kept = torch.arange(self.config.num_experts, device=x.device) < int(self.config.experts_per_token)
                kept = kept.expand_as(ranked)
            else:
                # 1 keeps every expert, also where float32 rounds the mass before the last ones to 1
                kept = (mass_before < router_top_p) | (router_top_p >= 1)  # (N, E)
            selected = torch.zeros_like(kept).scatter(-1, expert, kept)  # (N, E), in order of expert
            weights = torch.where(selected, router_probs, 0.0)
            if self.config.renormalize:
                weights = weights / weights.sum(-1, keepdim=True)
        return Routes(router_logits, router_probs, mass_before, selected, weights)

    def observe(self, mass_before: Tensor) -> None:
        """Shows the controller a batch, (N, E) in order of rank; the first rank is never refused, so it is left out."""
        self.controller.observe(mass_before[:, 1:])
