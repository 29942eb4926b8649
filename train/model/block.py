"""One layer, which a token may skip. B batch, T time, N = B*T tokens, D width."""

from typing import NamedTuple

from torch import Tensor, nn, where

from .attention.attention import Attended, Attention, Windows
from .attention.heads import HeadRoutes
from .config.model import ModelConfig
from .experts.moe import DenseFFN, MoE
from .mixers.build import build_mixer
from .norm import state_norm
from .recompute import run_recomputing
from .routing.depth import DepthRouter, DepthRoutes
from .routing.router import Routes


class Levels(NamedTuple):
    """The thresholds of one layer, each () float32, and what was drawn for its tokens."""

    router_top_p: Tensor
    depth_threshold: Tensor
    head_top_p: Tensor
    router_ratio: Tensor | None = None  # None: 0
    random_experts: Tensor | None = None  # (N,) int64, the experts that each token may run; None: all candidates
    task: Tensor | None = None  # (N,) int64, the task of each token, where routers have gates per task


class LayerRouting(NamedTuple):
    """The decisions of one layer for N tokens; None where there is nothing to decide.

    A dense FFN has no `routes`, a layer that always runs has no `depth`, one that uses all heads has no `heads`, one
    without a window has no `windows`. A mixer with a state has neither heads to choose nor a window.
    """

    runs: Tensor  # (N,) bool
    routes: Routes | None
    depth: DepthRoutes | None
    heads: HeadRoutes | None
    windows: Windows | None


SHARED = ("attention_norm", "attention", "mixer", "attention_post_norm", "ffn_norm", "moe", "ffn", "ffn_post_norm")
"""Parts of a layer that its repetitions share."""


class Block(nn.Module):
    """A block, here with `norm_place: pre`.

        h = x + attention(norm(x));  out = h + moe(norm(h))

    A layer may have a mixer with a recurrent state in place of attention. Tokens that skip the layer leave that state
    as it is, under both policies of `skipped_kv`.

    Under `post`, h = x + norm(attention(x)); under `sandwich`, h = x + norm(attention(norm(x))); moe likewise. With
    `parallel_residual`, moe reads x in place of h. The routers of experts and heads, and learned windows, read the same
    state as the part that they route: under `post` it has no norm (decision 0039).

    With a depth router of score r, a token that runs the layer gets x + 2 r (out - x). So the router learns from the
    tokens it lets through, and a score of 1/2 is a plain residual block.
    """

    def __init__(self, config: ModelConfig, layer: int, source: "Block | None" = None) -> None:
        """Build a layer, or one that repeats `source` and has no weights but those of its depth router."""
        super().__init__()
        self.skipped_kv = config.depth.skipped_kv
        self.skips = config.adapts_depth or config.depth.layer_dropout > 0
        self.counts_cells = config.counts_cells(layer)
        self.parallel = config.parallel_residual
        if source is None:
            self._build(config, layer)
        else:
            # Not registered as children of this module too: a checkpoint holds each weight once.
            self.__dict__.update({name: getattr(source, name) for name in SHARED})
        self.source = None if source is None else (source,)
        routed = config.has_depth_router(layer)
        router = DepthRouter(config.dim, config.depth, config.norm_eps, layer, config.num_layers) if routed else None
        self.depth_router = router

    def _build(self, config: ModelConfig, layer: int) -> None:
        self.attention_norm = state_norm(config, config.has_norms_before)
        self.attention = Attention(config, layer) if config.attends(layer) else None
        self.mixer = build_mixer(config, layer)
        self.attention_post_norm = state_norm(config, config.has_norms_after)
        self.ffn_norm = state_norm(config, config.has_norms_before)
        dense = config.is_dense(layer)
        self.moe = None if dense else MoE(config, layer)
        self.ffn = DenseFFN(config.dim, config.ffn_dim(layer), config.ffn) if dense else None
        self.ffn_post_norm = state_norm(config, config.has_norms_after)

    def forward(
        self, x: Tensor, alive: Tensor, rotary: tuple[Tensor, Tensor] | None, levels: Levels, recompute: bool = False
    ) -> tuple[Tensor, LayerRouting]:
        """Run the layer: -> x (B, T, D) and its routing.

        Args:
            x: (B, T, D).
            alive: (B, T) bool, false once a token has left.
            rotary: The two tables of `rotary_tables`; None without rotary positions.
            levels: The thresholds of this layer.
            recompute: Whether the backward pass computes most activations again; see `run_recomputing`.
        """
        if recompute:
            result: tuple[Tensor, LayerRouting] = run_recomputing(self._run, x, alive, rotary, levels)
            return result
        return self._run(x, alive, rotary, levels)

    def _run(
        self, x: Tensor, alive: Tensor, rotary: tuple[Tensor, Tensor] | None, levels: Levels
    ) -> tuple[Tensor, LayerRouting]:
        runs, depth = alive, None
        if self.depth_router is not None:
            depth = self.depth_router(x.flatten(0, 1), levels.depth_threshold)
            runs = alive & depth.passes.view(alive.shape)
        attended = self._mix_tokens(self.attention_norm(x), runs, rotary, levels.head_top_p)
        h = x + self.attention_post_norm(attended.out)
        normed = self.ffn_norm(x if self.parallel else h)
        update, routes = self._feed_forward(normed, runs, levels)
        out = h + self.ffn_post_norm(update)
        if depth is not None:
            out = x + depth.gate.view(*alive.shape, 1).to(x.dtype) * (out - x)
        heads, windows = attended.heads, attended.windows
        if self.skips:
            out = where(runs[..., None], out, x)
            if heads is not None:
                heads = heads._replace(selected_heads=heads.selected_heads & runs.flatten()[:, None])
            if windows is not None:
                windows = windows._replace(sizes=windows.sizes * runs.flatten())
        return out, LayerRouting(runs.flatten(), routes, depth, heads, windows)

    def _mix_tokens(
        self, normed: Tensor, runs: Tensor, rotary: tuple[Tensor, Tensor] | None, head_top_p: Tensor
    ) -> Attended:
        """Run attention, or the mixer that stands in its place."""
        if self.mixer is not None:
            return Attended(self.mixer(normed, runs if self.skips else None, rotary), None, None)
        assert self.attention is not None
        present = runs if self.skips and self.skipped_kv == "none" else None
        counted = runs if self.counts_cells else None
        attended: Attended = self.attention(normed, rotary, present, counted, head_top_p)
        return attended

    def _feed_forward(self, h: Tensor, runs: Tensor, levels: Levels) -> tuple[Tensor, Routes | None]:
        if self.moe is None:
            assert self.ffn is not None
            return self.ffn(h), None
        update, routes = self.moe(
            h.flatten(0, 1),
            runs.flatten(),
            levels.router_top_p,
            levels.router_ratio,
            levels.random_experts,
            levels.task,
        )
        return update.view(h.shape), routes
