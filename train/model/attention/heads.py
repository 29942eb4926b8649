"""The choice of query heads (mixture of heads). N tokens, D width, H query heads, S shared, R = H - S routed."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..config.thresholds import levels
from ..routing.thresholded_router import Thresholded, TokenShift, keep_gradient, shifted


class HeadRoutes(NamedTuple):
    """The decisions of a head router for N tokens."""

    router_logits: Tensor  # (N, R) float32
    router_probs: Tensor  # (N, R) float32
    mass_before: Tensor  # (N, R) float32, in order of rank: the score that is compared with head_top_p
    selected_heads: Tensor  # (N, H) bool, the shared ones first
    weights: Tensor  # (N, H) float32, factors of the heads' outputs, 0 where not selected
    shift: Tensor | None  # (N, 1) float32: how far a token's threshold is from the level, in logits
    soft_count: Tensor | None  # (N,) float32: the heads kept, with a gradient, where their number is learned


class HeadRouter(Thresholded):
    """A router that chooses and weights the heads of a token; some heads may be shared by all tokens.

        P = softmax over the routed rows of (W x);  w_i = m P_i / sum of selected P     for a selected routed head
        with S shared heads, a = 2 softmax(A x):    w_i a_1                             for a selected routed head
                                                    a_0 S softmax_i over the shared rows      for a shared head

    `top_k` takes the m most probable heads. `top_p` takes heads in order of probability until they reach the mass
    `head_top_p`, which may be moved for each token; the first is always taken. `adaptive` has no shared heads: a
    complexity c of the token decides how many run, from `least_heads` to `most_heads`. Of the ranks r between them,
    those run with

        sigmoid(logit(q_r) - c) < head_top_p,   q_r = (r - least + 1/2) / (most - least),   c = w . x + b

    Source: Mixture-of-Head attention, Jin et al. 2024 (arXiv 2410.11842), eq. 4-6, with the scaling of its code.
    Departs from it: m is the target average and not the number chosen, so that weights do not jump when one more head
    joins; top-p and the adaptive number are ours, held at `heads_per_token` by a controller as for experts.
    """

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        heads = config.heads
        adaptive, routed, shared = heads.routing == "adaptive", config.routed_heads, heads.shared_heads
        least, most = config.least_heads, config.most_heads
        between = (torch.arange(most - least) + 0.5) / max(most - least, 1)  # (most - least,): q_r
        initial = between if adaptive else torch.arange(1, routed) / routed
        units = (float(least), config.heads_per_token, float(most))
        initial = initial if len(initial) else torch.ones(1)
        super().__init__(heads, levels(heads.head_top_p, config.num_layers)[layer], units, initial)
        self.routing, self.shared, self.routed = heads.routing, shared, routed
        self.scale = config.heads_per_token - shared  # m
        # The row of a single shared head has no effect: a softmax over one is 1, so the row has no gradient. Its D
        # numbers are kept so that weights, optimizer slots and graph have one layout for every S.
        self.weight = nn.Parameter(torch.empty(config.num_heads, config.dim))  # (H, D), shared heads first
        self.balance = nn.Parameter(torch.empty(2, config.dim)) if shared else None
        predicts = adaptive or heads.per_token
        self.per_token = TokenShift(config.dim, None if adaptive else heads.per_token_reach) if predicts else None
        logits = torch.full((routed,), float("inf"))  # ranks from `most` on never run,
        if adaptive:
            logits[:least], logits[least:most] = float("-inf"), between.logit()  # those below `least` always
        self.register_buffer("rank_logits", logits, persistent=False)

    rank_logits: Tensor

    @property
    def learns(self) -> bool:
        """Whether the number of heads has a gradient."""
        return self.per_token is not None or self.level_logit is not None

    @property
    def is_budgeted(self) -> bool:
        """Whether a loss holds the average; see `Thresholded`."""
        return self.control.controller in ("fixed", "learned") and self.learns

    def forward(self, x: Tensor, head_top_p: Tensor) -> HeadRoutes:
        """Choose heads for normed x (N, D) at the level head_top_p (), in float32 even under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            logits = x @ self.weight.float().t()  # (N, H)
            router_logits = logits[:, self.shared :]  # (N, R)
            router_probs = router_logits.softmax(-1)
            ranked, head = router_probs.sort(dim=-1, descending=True, stable=True)  # (N, R)
            shift, limit = None, head_top_p
            if self.routing == "adaptive":
                assert self.per_token is not None
                scores = (self.rank_logits - self.per_token(x)).sigmoid()  # (N, R); 0 below least, 1 from most
                kept_ranks = ((scores < head_top_p) | (head_top_p >= 1)) & (self.rank_logits < float("inf"))
                kept_ranks = kept_ranks | (self.rank_logits == float("-inf"))
                free = slice(int(self.least_units), int(self.most_units))
            else:
                scores = F.pad(ranked.cumsum(-1)[:, :-1], (1, 0))  # (N, R); 0 for the first, which is always kept
                if self.per_token is not None:
                    shift = self.per_token(x)  # (N, 1)
                    limit = shifted(head_top_p, shift)
                if self.routing == "top_k":
                    kept_ranks = (torch.arange(self.routed, device=x.device) < int(self.scale)).expand_as(ranked)
                else:
                    kept_ranks = (scores < limit) | (head_top_p >= 1)
                    kept_ranks = torch.cat([torch.ones_like(kept_ranks[:, :1]), kept_ranks[:, 1:]], -1)
                free = slice(1, self.routed)
            gate, soft_count = kept_ranks.float(), None
            if self.learns:
                gate = torch.cat(
                    [gate[:, : free.start], keep_gradient(kept_ranks, scores, limit)[:, free], gate[:, free.stop :]], -1
                )
                soft_count = self.shared + gate.sum(-1)
            selected = torch.zeros_like(kept_ranks).scatter(-1, head, kept_ranks)  # (N, R), in order of head
            weights = torch.where(selected, router_probs, 0.0) * torch.zeros_like(gate).scatter(-1, head, gate)
            weights = self.scale * weights / weights.sum(-1, keepdim=True)
            if self.balance is not None:
                share = 2 * (x @ self.balance.float().t()).softmax(-1)  # (N, 2)
                common = self.shared * logits[:, : self.shared].softmax(-1)  # (N, S)
                weights = torch.cat([share[:, :1] * common, share[:, 1:] * weights], -1)  # (N, H)
                selected = torch.cat([torch.ones_like(common, dtype=torch.bool), selected], -1)
        return HeadRoutes(router_logits, router_probs, scores, selected, weights, shift, soft_count)

    def observe_routes(self, routes: HeadRoutes, shown: Tensor) -> Tensor | None:
        """Show the controllers the tokens of `shown` (N,) bool; return the error of `observe`.

        Ranks that always or never run are left out.
        """
        scores = shifted(routes.mass_before, None if routes.shift is None else -routes.shift)
        adaptive = self.routing == "adaptive"
        free = slice(int(self.least_units), int(self.most_units)) if adaptive else slice(1, self.routed)
        return self.observe(scores[shown][:, free], routes.selected_heads[shown].sum(-1))
