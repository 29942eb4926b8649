"""Causal grouped-query attention with rotary positions and QK-norm.

B batch, T time, D width, H query heads, K key/value heads, W width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .norm import RMSNorm


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, each (context_length, W / 2) float32. Source: Su et al. 2021 (arXiv 2104.09864), eq. 34."""
    width = config.width_of_head
    frequencies = config.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(config.context_length, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """x (B, heads, T, W), tables (T, W / 2) -> x turned by its position; the first half pairs with the second."""
    cos, sin = (table.to(x.dtype) for table in rotary)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Attention(nn.Module):
    """softmax(norm(q) norm(k)^T / sqrt(W)) v, with K <= H key/value heads.

    Source: grouped queries, Ainslie et al. 2023 (arXiv 2305.13245); QK-norm, Henry et al. 2020 (arXiv 2010.04245) with
    RMSNorm in place of l2 and the usual scale.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.width = config.width_of_head
        self.q = nn.Linear(config.dim, self.num_heads * self.width, bias=False)
        self.kv = nn.Linear(config.dim, 2 * self.num_kv_heads * self.width, bias=False)  # keys first
        self.o = nn.Linear(self.num_heads * self.width, config.dim, bias=False)
        self.q_norm = RMSNorm(self.width, config.norm_eps)
        self.k_norm = RMSNorm(self.width, config.norm_eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], visible: Tensor | None) -> Tensor:
        """x (B, T, D); visible (B, T) bool: tokens whose keys this layer holds, None for all -> (B, T, D)."""
        batch, time, _ = x.shape
        q = self.q(x).view(batch, time, self.num_heads, self.width).transpose(1, 2)  # (B, H, T, W)
        k, v = (
            self.kv(x).view(batch, time, 2 * self.num_kv_heads, self.width).transpose(1, 2).chunk(2, 1)
        )  # (B, K, T, W)
        q, k = rotate(self.q_norm(q), rotary).to(v.dtype), rotate(self.k_norm(k), rotary).to(v.dtype)
        mixed = attend(q, k, v, visible)  # (B, H, T, W)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """q (B, H, T, W), k and v (B, K, T, W), visible (B, T) or None -> (B, H, T, W).

    A token always sees itself, also where it is not visible to others, so that no row of the softmax is empty.
    """
    if visible is None and not (q.device.type == "cpu" and q.dtype == torch.bfloat16):
        plain: Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return plain
    time = q.shape[2]
    causal = torch.ones(time, time, dtype=torch.bool, device=q.device).tril()
    seen = causal
    if visible is not None:
        itself = torch.eye(time, dtype=torch.bool, device=q.device)
        seen = causal & (visible[:, None, None, :] | itself)  # (B, 1, T, T)
    if not (q.device.type == "cpu" and q.dtype == torch.bfloat16):
        masked: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return masked
    # torch's CPU kernel for SDPA in bf16 is 3 to 5 times slower than these three operations at short lengths
    batch, kv_heads, groups = q.shape[0], k.shape[1], q.shape[1] // k.shape[1]
    bias = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, float("-inf"))
    scores = (q.reshape(batch * kv_heads, groups * time, -1) * q.shape[-1] ** -0.5) @ k.flatten(0, 1).transpose(1, 2)
    scores = scores.view(batch, kv_heads * groups, time, time) + bias
    mixed = scores.softmax(-1).view(batch * kv_heads, groups * time, time) @ v.flatten(0, 1)
    out: Tensor = mixed.view(q.shape)
    return out
