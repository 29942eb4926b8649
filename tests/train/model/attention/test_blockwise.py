"""Attention by blocks of queries: results and gradients of attention in one piece, without keeping scores.

B batch, T time, W width of a head.
"""

import pytest
import torch
import torch.nn.functional as F
from support.counting import Counted
from torch import Tensor

from adaptive_lm.train.model.attention import attention, blockwise
from adaptive_lm.train.model.attention.attention import attend, mask_bias, seen_by
from adaptive_lm.train.model.attention.blockwise import attend_blockwise

B, W = 3, 8


def tensors(time: int, heads: int, kv_heads: int) -> list[Tensor]:
    """q, k, v and a gradient of the output, in the memory layout of a layer: the heads of a token side by side."""
    generator = torch.Generator().manual_seed(0)
    counts = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(B, time, count, W, generator=generator).transpose(1, 2) for count in counts]


def bias_of(what: str, time: int) -> Tensor | None:
    if what == "all_before":
        return None
    near = (torch.arange(time)[:, None] - torch.arange(time) < 5)[None, None]
    if what == "a_window":
        return mask_bias(seen_by(time, None, near), None)
    return mask_bias(seen_by(time, torch.rand(B, time, generator=torch.Generator().manual_seed(1)) < 0.5), None)


@pytest.mark.parametrize("at_once", [1, 2**20], ids=["a_row_at_once", "all_rows_at_once"])
@pytest.mark.parametrize("what", ["all_before", "some_hidden", "a_window"])
@pytest.mark.parametrize(("time", "heads", "kv_heads"), [(7, 4, 4), (9, 4, 2), (130, 3, 1), (300, 4, 2)], ids=str)
def test_blocks_attend_as_one_piece(
    monkeypatch: pytest.MonkeyPatch, time: int, heads: int, kv_heads: int, what: str, at_once: int
) -> None:
    """Also where the last block is short."""
    monkeypatch.setattr(blockwise, "AT_ONCE", at_once)
    *qkv, gradient = tensors(time, heads, kv_heads)
    bias = bias_of(what, time)
    given = [each.requires_grad_() for each in qkv]
    found = attend_blockwise(*given, bias)
    whole = F.scaled_dot_product_attention(*given, attn_mask=bias, is_causal=bias is None, enable_gqa=True)
    torch.testing.assert_close(found, whole, rtol=0, atol=2e-6)
    of_found, of_whole = (torch.autograd.grad(out, given, gradient) for out in (found, whole))
    for one, other in zip(of_found, of_whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("what", ["all_before", "some_hidden"])
def test_long_attention_in_bf16_goes_by_blocks_and_short_in_one_piece(what: str) -> None:
    """The same numbers on both sides of the length at which it changes, up to the rounding of bf16."""
    for time, by_blocks in ((blockwise.LEAST_TIME - 1, False), (blockwise.LEAST_TIME, True)):
        q, k, v, _ = (each.bfloat16() for each in tensors(time, 4, 2))
        bias = bias_of(what, time)
        seen = None if bias is None else bias == 0
        with Counted() as counted:
            found = attend(q, k, v, seen)
        assert counted.runs["adaptive_lm.attention_forward.default"] == by_blocks
        exact = attend(q.float(), k.float(), v.float(), seen)
        torch.testing.assert_close(found.float(), exact, rtol=0, atol=3e-2)


def test_blocks_keep_no_scores() -> None:
    """The memory for the backward pass grows with the length, not with its square."""
    kept: list[int] = []
    q, k, v, _ = (each.requires_grad_() for each in tensors(256, 4, 2))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        attend_blockwise(q, k, v, None)
    assert sum(kept) == q.numel() + k.numel() + v.numel()


def test_a_learned_window_attends_in_one_piece_at_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient goes through the ramp, for which blocks have none."""
    monkeypatch.setattr(attention, "LEAST_TIME", 1)
    q, k, v, _ = (each.bfloat16() for each in tensors(9, 4, 2))
    ramp = torch.rand(B, 1, 9, 9, generator=torch.Generator().manual_seed(2)).requires_grad_()
    seen = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    attend(q, k, v, seen, ramp).float().sum().backward()
    assert ramp.grad is not None
    assert ramp.grad.abs().max() > 0
