"""The choice of experts. N tokens, D width, E experts, Z zero-computation experts."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.sections import FFNConfig
from ..config.thresholds import levels
from .controllers import L1Controller, PIController
from .thresholded_router import Thresholded, TokenShift, keep_gradient, shifted


class ZeroRoutes(NamedTuple):
    """The decisions about the zero-computation experts of N tokens."""

    selected: Tensor  # (N, Z) bool
    weights: Tensor  # (N, Z) float32, 0 where not selected
    ranks: Tensor  # (N, E + Z) bool: the ranks of the experts with matrices
    balance: Tensor  # (E + Z,) float32: weights in the load-balancing loss


class Routes(NamedTuple):
    """The decisions of a router for N tokens; C candidates of a token, the experts of highest score.

    Zero-computation experts follow the others in logits, probabilities and ranking: E is E + Z there.
    """

    router_logits: Tensor  # (N, E) float32
    router_probs: Tensor  # (N, E) float32, which add up to 1; under `relu` 0 for a token without experts
    mass_before: Tensor  # (N, C) float32, in order of rank: the share of the candidates' mass that is ranked higher
    selected_experts: Tensor  # (N, E) bool
    routing_weights: Tensor  # (N, E) float32, 0 where not selected
    ranking: Tensor  # (N, E) float32: the scores that experts are ranked by
    ranked: Tensor  # (N, C) float32: the scores that weights are made of, in order of rank
    shift: Tensor | None = None  # (N, 1) float32: how far a token's threshold is from the level, in logits
    soft_count: Tensor | None = None  # (N,) float32: the experts kept, with a gradient, where a threshold is learned
    zero: ZeroRoutes | None = None

    @property
    def selected(self) -> Tensor:
        """All choices, (N, E + Z) bool: experts, then zero-computation experts."""
        return self.selected_experts if self.zero is None else torch.cat([self.selected_experts, self.zero.selected], 1)

    @property
    def balance(self) -> Tensor | None:
        """Weights of experts and zero-computation experts in the load-balancing loss, (E + Z,); None for 1."""
        return None if self.zero is None else self.zero.balance


LEAST_MASS = 1e-20
"""What a mass is divided by at least; sigmoids can all be 0."""


class Router(Thresholded):
    """Top-p routing: a token takes experts in order of score until they reach the mass `router_top_p`.

        P = softmax(W x);  selected = {k : sum of P ranked before k < router_top_p};  g_k = P_k / sum of selected P

    The first expert is always taken; the threshold may be moved for each token. `top_k` is the fixed baseline. Source:
    Huang et al. 2024 (arXiv 2403.07652), eq. 3-5. Departs from it: the weights are renormalised (measured better), and
    the threshold is not constant. A controller holds it so that a layer uses `experts_per_token` on average, by default
    by quantiles: of the C - 1 ranks after the first, a share (experts_per_token - 1) / (C - 1) has a mass before it
    below the threshold.

    With `most_experts` only the C experts of highest score are candidates, the mass is their share, and a token also
    stops at the first rank whose score is below `router_ratio` times that of the first. So a `router_top_p` of 1 and a
    `router_ratio` of 0 are top-k routing (docs/decisions/0038). With `score: sigmoid`, P = sigmoid(W x), and the mass
    is the share of the candidates too.

    Zero-computation experts (MoE++, arXiv 2410.07348) are ranked with the others, and the first rank may be one. So a
    token may have no expert with matrices, and the average that the controller holds is of those alone.

    With `routing: relu` (ReMoE, arXiv 2412.14711), P = relu(W x) and g = P: a token has the experts of positive P, up
    to the share `router_top_p` of their sum, which is 1 in training. It has none where no P is positive. The average is
    held by an L1 loss, whose coefficient is in `l1`. Departs from it: a coefficient for each layer.
    """

    def __init__(self, dim: int, config: FFNConfig, layer: int = 0, num_layers: int = 1) -> None:
        self.candidates = config.most_experts or config.num_logits
        # the table needs an entry, also where the only candidate is always taken
        uniform = torch.arange(config.least_experts, max(self.candidates, 2)) / max(self.candidates, 2)
        units = (float(config.least_experts), config.experts_per_token, float(config.candidates))
        super().__init__(config, levels(config.router_top_p, num_layers)[layer], units, uniform)
        self.config = config
        self.relu = config.routing == "relu"
        self.weight = nn.Parameter(torch.empty(config.num_logits, dim))  # (E, D)
        self.bias = nn.Parameter(torch.empty(config.num_logits)) if config.router_bias else None  # (E,)
        self.selection_bias: Tensor | None
        """(E,) float32. A buffer, part of the checkpoint."""
        self.register_buffer("selection_bias", torch.zeros(config.num_logits) if config.selection_bias else None)
        self.per_token = TokenShift(dim, config.per_token_reach) if config.per_token else None
        self.l1 = L1Controller() if self.relu else None
        self.balance: Tensor
        balance = torch.ones(config.num_logits)
        balance[config.num_experts :] = config.zero_experts.tau
        self.register_buffer("balance", balance if config.has_zero_experts else None, persistent=False)

    def level(self, shared: PIController | None = None) -> Tensor:
        """Return the current level; under `relu` it is 1, since the L1 loss holds the average."""
        return self.controller.table.new_tensor(1.0) if self.relu else super().level(shared)

    def forward(
        self,
        x: Tensor,
        router_top_p: Tensor,
        router_ratio: Tensor | None = None,
        random_experts: Tensor | None = None,
        task_bias: Tensor | None = None,
    ) -> Routes:
        """Choose experts for x (N, D), in float32 even under autocast.

        Args:
            x: (N, D).
            router_top_p: (), the level of the layer.
            router_ratio: (), least score relative to that of the first, of a router with `most_experts`; None means 0.
            random_experts: (N,) int64, the experts that each token may run; None means all candidates.
            task_bias: (N, E), added to the logits: the gates of each token's task (Ma et al. 2018, "Modeling Task
                Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD). Departs from it: a task
                has a bias in place of a matrix of its own.
        """
        candidates, experts = self.candidates, self.config.num_experts
        shares = self.relu or self.config.most_experts is not None or self.config.score != "softmax"
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            router_logits = x @ self.weight.float().t()  # (N, E)
            if task_bias is not None:
                router_logits = router_logits + task_bias.float()
            if self.bias is not None:
                router_logits = router_logits + self.bias.float()
            if self.config.score == "softmax" and not self.relu:
                scores = router_probs = router_logits.softmax(-1)  # (N, E)
            else:
                scores = router_logits.relu() if self.relu else router_logits.sigmoid()
                router_probs = scores / scores.sum(-1, keepdim=True).clamp(min=LEAST_MASS)
            ranking = scores if self.selection_bias is None else scores + self.selection_bias.float()
            shift = self.per_token(x) if self.per_token is not None else None  # (N, 1)
            limit = shifted(router_top_p, shift)
            in_order, expert = ranking.sort(dim=-1, descending=True, stable=True)  # (N, E)
            ranked = in_order if self.selection_bias is None else scores.gather(-1, expert)
            if candidates < self.config.num_logits:
                ranked, in_order, expert = (part[:, :candidates] for part in (ranked, in_order, expert))  # (N, C)
            mass_before = F.pad(ranked.cumsum(-1)[:, :-1], (1, 0))  # (N, C); 0 for the first, which is always kept
            if shares:
                mass_before = mass_before / ranked.sum(-1, keepdim=True).clamp(min=LEAST_MASS)
            place = torch.arange(self.config.num_logits, device=x.device)
            if self.config.routing == "top_k":
                count = int(self.config.experts_per_token)
                last = torch.full_like(expert[:, :1], count - 1)  # (N, 1), of the ranks kept
            else:
                # 1 keeps every candidate, also where float32 rounds the mass before the last ones to 1
                below = (mass_before < limit) | (router_top_p >= 1)  # (N, C): a token's first ones, or none
                if router_ratio is not None and self.config.most_experts is not None:
                    # a selection bias ranks by another score, so the first rank that falls short ends the choice
                    short = ranked < router_ratio * ranked[:, :1]
                    below = below & (short.cumsum(-1) == 0)
                if random_experts is not None:
                    below = below & (place[:candidates] < random_experts[:, None])
                last = below.sum(-1, keepdim=True).clamp(min=1) - 1
            # Select those ranked no lower than the last rank kept, in order of expert. A scatter of the ranks gives the
            # same, but is slower than the sort when compiled. NaN selects all experts, so that it cannot go unnoticed.
            edge, at_edge = in_order.gather(-1, last), expert.gather(-1, last)  # (N, 1)
            selected = ~((ranking < edge) | ((ranking == edge) & (place > at_edge)))  # (N, E)
            if self.relu:
                selected = selected & ~(scores <= 0)
            weights, soft_count = torch.where(selected, scores, 0.0), None
            if self.level_logit is None and shift is None:
                mass_before = mass_before.detach()  # or its gradient, which is zero, would be computed
            else:
                kept_ranks = place[:candidates] <= last  # (N, C)
                gate = keep_gradient(kept_ranks, mass_before, limit)[:, 1:]  # (N, C - 1)
                gate = torch.cat([torch.ones_like(ranked[:, :1]), gate], -1)
                by_expert = torch.zeros_like(scores).scatter(-1, expert, gate)
                soft_count = by_expert[:, :experts].sum(-1) if self.config.has_zero_experts else gate.sum(-1)
                weights = weights * by_expert
            if self.config.renormalize:
                total = weights.sum(-1, keepdim=True)
                weights = weights / (total if self.config.score == "softmax" else total.clamp(min=LEAST_MASS))
            zero = None
            if self.config.has_zero_experts:
                zero = ZeroRoutes(selected[:, experts:], weights[:, experts:], expert < experts, self.balance)
                selected, weights = selected[:, :experts].contiguous(), weights[:, :experts].contiguous()
        return Routes(
            router_logits, router_probs, mass_before, selected, weights, ranking.detach(), ranked.detach(), shift,
            soft_count, zero,
        )  # fmt: skip

    def observe_routes(self, routes: Routes, shown: Tensor) -> Tensor | None:
        """Show the controllers the tokens of `shown` (N,) bool; return the error of `observe`.

        Where the first rank is always an expert it is left out, since it is always taken.
        """
        scores, units = routes.mass_before, routes.selected_experts[shown].sum(-1)
        if self.relu:
            error = self.observe(torch.where(routes.ranked > 0, scores, 1.0)[shown], units)
            if self.l1 is not None and error is not None:
                self.l1.observe(error)
            return error
        scores = shifted(scores, None if routes.shift is None else -routes.shift)[shown]
        return self.observe(scores[:, 1:] if routes.zero is None else scores[routes.zero.ranks[shown]], units)
