"""Which query heads a token uses: mixture of heads. N tokens, D width, H query heads, S of them shared, R = H - S."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .threshold_config import levels
from .thresholded_router import Thresholded, TokenShift, keep_gradient, shifted


class HeadRoutes(NamedTuple):
    """What a head router decided for N tokens."""

    router_logits: Tensor  # (N, R) float32
    router_probs: Tensor  # (N, R) float32
    mass_before: Tensor  # (N, R) float32, in order of rank: what is compared with head_top_p
    selected_heads: Tensor  # (N, H) bool, the shared ones first
    weights: Tensor  # (N, H) float32 on the outputs of the heads, 0 where not selected
    shift: Tensor | None  # (N, 1) float32: how far a token's threshold is from the level, in logits
    soft_count: Tensor | None  # (N,) float32: the heads kept, with a gradient, where their number is learned


class HeadRouter(Thresholded):
    """Some heads are shared by all tokens, the others are chosen by each; the outputs of the heads are weighted.

        P = softmax over the routed rows of (W x);  w_i = m P_i / sum of selected P     for a selected routed head
        with S shared heads, a = 2 softmax(A x):  w_i a_1 for those, a_0 S softmax_i over the shared rows for these

    `top_k` takes the m most probable, `top_p` heads in order of probability until they hold the mass `head_top_p`
    (which can be moved for each token; the first is always taken). `adaptive` has no shared heads: a complexity c of
    the token says how many run, between `least_heads` and `most_heads`: of the ranks r between them those with

        sigmoid(logit(q_r) - c) < head_top_p,   q_r = (r - least + 1/2) / (most - least),   c = w . x + b

    Source: Mixture-of-Head attention, Jin et al. 2024 (arXiv 2410.11842), eq. 4-6, in the scaling of its code.
    Departs from it: m is the average asked for and not the number chosen, so that weights do not jump when one more
    head joins; top-p and the adaptive number are ours, held at `heads_per_token` by a controller as the experts are.
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
        # One shared head alone is weighed against nothing: softmax over one is 1, its row has no gradient and stays as
        # it was drawn. It is kept all the same, D numbers a layer: so weights, their slots and the exported graph have
        # one shape for every S, and no checkpoint with one shared head has to be converted, slots and all.
        self.weight = nn.Parameter(torch.empty(config.num_heads, config.dim))  # (H, D), shared heads first
        self.balance = nn.Parameter(torch.empty(2, config.dim)) if shared else None
        predicts = adaptive or heads.per_token
        self.per_token = TokenShift(config.dim, None if adaptive else heads.per_token_reach) if predicts else None
        logits = torch.full((routed,), float("inf"))  # of each rank: from `most` on it runs at no complexity,
        if adaptive:
            logits[:least], logits[least:most] = float("-inf"), between.logit()  # below `least` at any
        self.register_buffer("rank_logits", logits, persistent=False)

    rank_logits: Tensor

    @property
    def learns(self) -> bool:
        """Whether the number of heads has a gradient."""
        return self.per_token is not None or self.level_logit is not None

    @property
    def is_budgeted(self) -> bool:
        return self.control.controller in ("fixed", "learned") and self.learns

    def forward(self, x: Tensor, head_top_p: Tensor) -> HeadRoutes:
        """x (N, D) normed, head_top_p () -> HeadRoutes. Always in float32, whatever autocast says."""
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
                kept = ((scores < head_top_p) | (head_top_p >= 1)) & (self.rank_logits < float("inf"))
                kept = kept | (self.rank_logits == float("-inf"))
                free = slice(int(self.least_units), int(self.most_units))
            else:
                scores = F.pad(ranked.cumsum(-1)[:, :-1], (1, 0))  # (N, R); 0 for the first, which is always kept
                if self.per_token is not None:
                    shift = self.per_token(x)  # (N, 1)
                    limit = shifted(head_top_p, shift)
                if self.routing == "top_k":
                    kept = (torch.arange(self.routed, device=x.device) < int(self.scale)).expand_as(ranked)
                else:
                    kept = (scores < limit) | (head_top_p >= 1)
                    kept = torch.cat([torch.ones_like(kept[:, :1]), kept[:, 1:]], -1)
                free = slice(1, self.routed)
            gate, soft_count = kept.float(), None
            if self.learns:
                gate = torch.cat(
                    [gate[:, : free.start], keep_gradient(kept, scores, limit)[:, free], gate[:, free.stop :]], -1
                )
                soft_count = self.shared + gate.sum(-1)
            selected = torch.zeros_like(kept).scatter(-1, head, kept)  # (N, R), in order of head
            weights = torch.where(selected, router_probs, 0.0) * torch.zeros_like(gate).scatter(-1, head, gate)
            weights = self.scale * weights / weights.sum(-1, keepdim=True)
            if self.balance is not None:
                share = 2 * (x @ self.balance.float().t()).softmax(-1)  # (N, 2)
                common = self.shared * logits[:, : self.shared].softmax(-1)  # (N, S)
                weights = torch.cat([share[:, :1] * common, share[:, 1:] * weights], -1)  # (N, H)
                selected = torch.cat([torch.ones_like(common, dtype=torch.bool), selected], -1)
        return HeadRoutes(router_logits, router_probs, scores, selected, weights, shift, soft_count)

    def observe_routes(self, routes: HeadRoutes, shown: Tensor) -> Tensor | None:
        """Shows the controllers a batch, the tokens of `shown` (N,), and returns what `observe` does; ranks that are
        never refused or never taken are left out."""
        scores = shifted(routes.mass_before, None if routes.shift is None else -routes.shift)
        adaptive = self.routing == "adaptive"
        free = slice(int(self.least_units), int(self.most_units)) if adaptive else slice(1, self.routed)
        return self.observe(scores[shown][:, free], routes.selected_heads[shown].sum(-1))
