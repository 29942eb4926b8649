"""Attention: what a token may see, and that the form for bf16 on a CPU computes the same.

B batch, T time, W width of a head.
"""

import copy

import pytest
import torch
from reference.model import FP32_TOLERANCE
from support.models import tiny_ids, tiny_model
from torch import Tensor

from adaptive_lm.train.model.attention.attention import attend, seen_by

B, T, W = 2, 9, 8


def tensors(heads: int, kv_heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, count, T, W, generator=generator) for count in (heads, kv_heads, kv_heads)]


def seen_of(what: str) -> Tensor | None:
    """Which tokens each sees, (B or 1, 1, T, T); None for all before it."""
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    if what == "all_before":
        return None
    if what == "a_window":
        return (causal & ~causal.tril(-3))[None, None]
    present = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.5
    return seen_by(T, present)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("what", ["all_before", "some_hidden", "a_window"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (4, 1)], ids=lambda n: str(n))
def test_attention_is_its_formula(heads: int, kv_heads: int, what: str, dtype: torch.dtype) -> None:
    q, k, v = tensors(heads, kv_heads)
    seen = seen_of(what)
    found = attend(q.to(dtype), k.to(dtype), v.to(dtype), seen)
    assert found.dtype == dtype
    expected = torch.zeros(B, heads, T, W)
    mask = torch.ones(T, T, dtype=torch.bool).tril().expand(B, T, T) if seen is None else seen[:, 0].expand(B, T, T)
    for b, head, t in torch.cartesian_prod(torch.arange(B), torch.arange(heads), torch.arange(T)).tolist():
        group = head // (heads // kv_heads)
        shares = (k[b, group, mask[b, t]] @ q[b, head, t] / W**0.5).softmax(-1)
        expected[b, head, t] = shares @ v[b, group, mask[b, t]]
    tolerance = 1e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)


def test_a_token_sees_itself_and_those_before_it_that_are_present_and_near() -> None:
    present = torch.tensor([[True, False, True, False]])
    near = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1]]).bool()[None, None]
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]).bool()
    assert torch.equal(seen_by(4, present, near)[0, 0], expected)
    assert torch.equal(seen_by(4, None, near)[0, 0], near[0, 0].tril())
    assert torch.equal(
        seen_by(4, present)[0, 0], torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]).bool()
    )


@pytest.mark.parametrize("name", ["cope", "window_entropy"])
def test_attention_with_its_scores_in_hand_is_the_fused_one(name: str) -> None:
    """Contextual positions and the spread of attention need the scores; the results equal those of the fused path."""
    model = copy.deepcopy(tiny_model(name)).train()
    open_out = model(tiny_ids()).logits
    if name == "cope":
        with torch.no_grad():
            for block in model.layers:
                block.attention.position_embedding.zero_()
        open_out = model(tiny_ids()).logits
        for block in model.layers:
            block.attention.position_embedding = None
    fused = model.eval()(tiny_ids()).logits
    torch.testing.assert_close(open_out, fused, rtol=0, atol=FP32_TOLERANCE)
