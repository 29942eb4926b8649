"""One layer, which a token may skip. B batch, T time, N = B*T tokens, D width, E experts."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn, where

from .attention import Attention
from .config import ModelConfig
from .depth import DepthRouter
from .moe import DenseFFN, MoE
from .norm import RMSNorm
from .router import Routes


class LayerRouting(NamedTuple):
    """What one layer decided for N tokens. A dense FFN has no `routes`, a layer that always runs no depth scores."""

    runs: Tensor  # (N,) bool
    routes: Routes | None
    depth_logits: Tensor | None  # (N,) float32
    depth_scores: Tensor | None  # (N,) float32


class Block(nn.Module):
    """h = x + attention(norm(x)); out = h + moe(norm(h)); and with a depth router of score r, for tokens that run:

        x + 2 r (out - x)

    so that the router learns from the tokens it lets through, and a score of 1/2 is a plain residual block.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.skipped_kv = config.depth.skipped_kv
        self.adapts_depth = config.adapts_depth
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.moe = MoE(config) if config.ffn.routing != "dense" else None
        self.ffn = DenseFFN(config.dim, config.ffn.dim) if config.ffn.routing == "dense" else None
        routed = config.has_depth_router(layer)
        self.depth_router = DepthRouter(config.dim, config.depth, config.norm_eps) if routed else None

    def forward(
        self, x: Tensor, alive: Tensor, rotary: tuple[Tensor, Tensor], router_top_p: Tensor, depth_threshold: Tensor
    ) -> tuple[Tensor, LayerRouting]:
        """x (B, T, D); alive (B, T) bool, false once a token has left; thresholds () -> x and routing."""
        runs, logits, scores = alive, None, None
        if self.depth_router is not None:
            logits, scores = self.depth_router(x.flatten(0, 1))
            runs = alive & (scores >= depth_threshold).view(alive.shape)
        visible = runs if self.adapts_depth and self.skipped_kv == "none" else None

        h = x + self.attention(self.attention_norm(x), rotary, visible)
        update, routes = self._feed_forward(self.ffn_norm(h), runs, router_top_p)
        out = h + update
        if scores is not None:
            out = x + 2 * scores.view(*alive.shape, 1).to(x.dtype) * (out - x)
        if self.adapts_depth:
            out = where(runs[..., None], out, x)
        return out, LayerRouting(runs.flatten(), routes, logits, scores)

    def _feed_forward(self, h: Tensor, runs: Tensor, router_top_p: Tensor) -> tuple[Tensor, Routes | None]:
        if self.moe is None:
            assert self.ffn is not None
            return self.ffn(h), None
        update, routes = self.moe(h.flatten(0, 1), runs.flatten(), router_top_p)
        return update.view(h.shape), routes
