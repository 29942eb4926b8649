"""Causal grouped-query attention: QK-norm, rotary, contextual or no positions, windows, and a choice of heads.

B batch, T time, N = B*T tokens, D width, H query heads, K key/value heads, W width of a head, P CoPE positions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..linear import Linear
from ..norm import RMSNorm
from .blockwise import LEAST_TIME, attend_blockwise
from .cope import contextual_bias
from .heads import HeadRouter, HeadRoutes
from .rope import rotate
from .window import WindowController, WindowRouter, level_of, places_of, window_by_length, window_levels


class Windows(NamedTuple):
    """The windows of a layer's tokens: the number of tokens that each attends to."""

    sizes: Tensor  # (N,) int64
    scores: Tensor | None  # (N,) float32, where the window is learned
    spread: Tensor | None  # (N,) float32, exp(entropy) of attention, in training where the window follows it


class Attended(NamedTuple):
    """The output of attention and its decisions; None where there was nothing to decide."""

    out: Tensor  # (B, T, D)
    heads: HeadRoutes | None
    windows: Windows | None


class Attention(nn.Module):
    """Attention of one layer with K <= H key/value heads.

        out = softmax(cap(norm(q) norm(k)^T / sqrt(W)) + position) v,   cap(s) = c tanh(s / c), or s without a softcap

    Source: grouped queries, Ainslie et al. 2023 (arXiv 2305.13245); QK-norm, Henry et al. 2020 (arXiv 2010.04245), and
    over all heads, OLMo 2 (arXiv 2501.00656); softcap, Gemma 2 (arXiv 2408.00118).
    Departs from Henry et al.: RMSNorm in place of the l2 norm, and the usual scale.
    """

    window_table: Tensor | None

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.resolved_head_dim
        of_q, of_k = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q = Linear(config.dim, of_q, config.attention.qkv_bias)
        self.kv = Linear(config.dim, 2 * of_k, config.attention.qkv_bias)  # keys first
        self.o = Linear(of_q, config.dim, config.attention.o_bias)
        self.qk_norm, self.softcap = config.attention.qk_norm, config.attention.softcap
        widths = {"none": (0, 0), "head": (self.head_dim, self.head_dim), "full": (of_q, of_k)}[self.qk_norm]
        self.q_norm, self.k_norm = (RMSNorm(width, config.norm_eps) if width else None for width in widths)
        self.positions, contextual = config.positions_of(layer), config.positions_of(layer) == "cope"
        positions = torch.empty(config.attention.max_positions, self.head_dim)
        self.position_embedding = nn.Parameter(positions) if contextual else None  # (P, W)
        self.head_router = HeadRouter(config, layer) if config.heads.routing != "all" else None
        self.window, kind = config.window_of(layer), config.attention.window_kind
        self.window_least, self.window_ramp = config.attention.window_least, config.attention.window_ramp
        self.window_router = WindowRouter(config.dim) if self.window and kind == "learned" else None
        follows = self.window and kind == "entropy"
        self.window_controller = WindowController(config.attention, self.window) if follows else None
        tables = {"length": window_by_length, "learned": window_levels}
        table = torch.from_numpy(tables[kind](config, layer)) if self.window and kind in tables else None
        self.register_buffer("window_table", table, persistent=False)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        present: Tensor | None,
        counted: Tensor | None,
        head_top_p: Tensor,
    ) -> Attended:
        """Attend.

        Args:
            x: (B, T, D), normed.
            rotary: The two tables of `rotary_tables`, each (T, R / 2); None without rotary positions.
            present: (B, T) bool, the tokens whose keys this layer holds; None for all.
            counted: (B, T) bool, the tokens that contextual positions count; None for all that are present.
            head_top_p: (), the level of the head router.
        """
        batch, time, _ = x.shape
        q = self.q(x).view(batch, time, self.num_heads, self.head_dim)  # (B, T, H, W)
        k, v = self.kv(x).view(batch, time, 2 * self.num_kv_heads, self.head_dim).chunk(2, 2)  # (B, T, K, W)
        q, k = self._normed(q, self.q_norm).transpose(1, 2), self._normed(k, self.k_norm).transpose(1, 2)
        v = v.transpose(1, 2)  # (B, K, T, W)
        if self.positions == "rope" and rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        q, k = q.to(v.dtype), k.to(v.dtype)
        windows, seen, ramp = self._look_back(x, present)
        plain = self.position_embedding is None and not self.softcap
        if plain and not (self.window_controller and self.training):
            mixed = attend(q, k, v, seen, ramp)  # (B, H, T, W)
        else:
            mixed, spread = self.attend_unfused(q, k, v, seen, ramp, counted)
            if windows is not None and spread is not None:
                windows = windows._replace(spread=spread.flatten())
        heads = None
        if self.head_router is not None:
            heads = self.head_router(x.flatten(0, 1), head_top_p)
            mixed = mixed * heads.weights.view(batch, time, -1, 1).transpose(1, 2).to(mixed.dtype)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return Attended(out, heads, windows)

    def _normed(self, heads: Tensor, norm: RMSNorm | None) -> Tensor:
        """Normalise heads (B, T, n, W), each by itself or all together."""
        if norm is None:
            return heads
        out: Tensor = norm(heads) if self.qk_norm == "head" else norm(heads.flatten(2)).view(heads.shape)
        return out

    def _look_back(self, x: Tensor, present: Tensor | None) -> tuple[Windows | None, Tensor | None, Tensor | None]:
        """Return windows, mask and ramp.

        The mask is what each token sees, (B or 1, 1, T, T) bool, None for all tokens up to itself. The ramp is how much
        of each key it sees, (B, 1, T, T) in 0..1, only while a learned window trains.
        """
        if not self.window:
            return None, None if present is None else seen_by(x.shape[1], present), None
        places = places_of(present, x)  # (B, T)
        distance = (places[:, :, None] - places[:, None, :])[:, None]  # (B, 1, T, T)
        scores, ramp = None, None
        if self.window_router is not None:
            assert self.window_table is not None
            scores = self.window_router(x)  # (B, T)
            sizes = self.window_table[level_of(scores)]
            if self.training:
                reach = self.window_least + (self.window - self.window_least) * scores[:, None, :, None]
                ramp = ((reach - distance) / self.window_ramp + 0.5).clamp(0, 1)
                ramp = torch.where(distance == 0, 1.0, ramp)  # a token sees itself
        elif self.window_table is not None:
            sizes = self.window_table[places.clamp(min=0)]
        elif self.window_controller is not None:
            sizes = self.window_controller.window.expand(places.shape)
        else:
            sizes = torch.full_like(places, self.window)
        near = distance < sizes[:, None, :, None] if ramp is None else ramp > 0
        seen = seen_by(x.shape[1], present, near)
        return Windows(sizes.flatten(), None if scores is None else scores.flatten(), None), seen, ramp

    def attend_unfused(
        self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, ramp: Tensor | None, counted: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with explicit scores in float32, which contextual positions, softcaps and entropy windows need.

        Returns:
            The mixed values (B, H, T, W); and where the window follows it, exp(entropy), a mean over the heads, (B, T).
        """
        with torch.autocast(q.device.type, enabled=False):
            time, groups = q.shape[2], self.num_heads // self.num_kv_heads
            seen = torch.ones(time, time, dtype=torch.bool, device=q.device).tril() if seen is None else seen
            query, key = q.float(), k.float().repeat_interleave(groups, 1)
            scores = query @ key.transpose(-1, -2) * self.head_dim**-0.5  # (B, H, T, T)
            if self.softcap:
                scores = self.softcap * (scores / self.softcap).tanh()
            if self.position_embedding is not None:
                counts = seen.float() if ramp is None else seen * ramp
                if counted is not None:
                    counts = counts * counted[:, None, None, :]
                scores = scores + contextual_bias(query, scores, counts, self.position_embedding.float())
            scores = scores + mask_bias(seen, ramp)
            shares = scores.softmax(-1)
            mixed = shares.to(v.dtype) @ v.repeat_interleave(groups, 1)
            if self.window_controller is None or not self.training:
                return mixed, None
            with torch.no_grad():
                entropy = torch.special.entr(shares).sum(-1)  # (B, H, T)
            return mixed, entropy.exp().mean(1)


def seen_by(time: int, present: Tensor | None, near: Tensor | None = None) -> Tensor:
    """Return which tokens each token sees, (B or 1, 1, T, T) bool.

    A token sees itself, and those before it that are `present` (B, T) and `near` (B, 1, T, T).
    """
    one = present if present is not None else near
    assert one is not None
    seen = torch.ones(time, time, dtype=torch.bool, device=one.device).tril()[None, None]
    if near is not None:
        seen = seen & near
    if present is not None:
        itself = torch.eye(time, dtype=torch.bool, device=one.device)
        seen = (seen & present[:, None, None, :]) | itself
    return seen


def mask_bias(seen: Tensor, ramp: Tensor | None) -> Tensor:
    """Return what is added to the scores.

    It is -inf where a key is not seen (B or 1, 1, T, T), else the logarithm of how much of it is seen, `ramp`
    (B, 1, T, T) in 0..1.
    """
    if ramp is None:
        return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, float("-inf"))
    return ramp.clamp(min=1e-6).log().masked_fill(~seen, float("-inf"))


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, ramp: Tensor | None = None) -> Tensor:
    """Attend causally, by the fastest kernel for the device: -> (B, H, T, W).

    Args:
        q: (B, H, T, W).
        k: (B, K, T, W).
        v: (B, K, T, W).
        seen: (B or 1, 1, T, T) bool; None for all tokens up to the query.
        ramp: (B, 1, T, T) in 0..1, how much of each key is seen; None for all of it.
    """
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if not slow:
        mask = seen if seen is None or ramp is None else mask_bias(seen, ramp).to(q.dtype)
        fused: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return fused
    # torch's CPU kernel for SDPA in bf16 is slower: 3 to 5 times at short lengths, 2 times at long ones
    time = q.shape[2]
    if time >= LEAST_TIME and ramp is None:
        return attend_blockwise(q, k, v, None if seen is None else mask_bias(seen, ramp).to(q.dtype))
    seen = torch.ones(time, time, dtype=torch.bool, device=q.device).tril() if seen is None else seen
    batch, kv_heads, groups = q.shape[0], k.shape[1], q.shape[1] // k.shape[1]
    scores = (q.reshape(batch * kv_heads, groups * time, -1) * q.shape[-1] ** -0.5) @ k.flatten(0, 1).transpose(1, 2)
    scores = scores.view(batch, kv_heads * groups, time, time) + mask_bias(seen, ramp).to(q.dtype)
    mixed = scores.softmax(-1).view(batch * kv_heads, groups * time, time) @ v.flatten(0, 1)
    out: Tensor = mixed.view(q.shape)
    return out
