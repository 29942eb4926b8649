"""Attention: what a token may see, and that the form for bf16 on a CPU is the same one.

B batch, T time, W width of a head.
"""

import pytest
import torch
from torch import Tensor

from adaptive_lm.train.model.attention import attend

B, T, W = 2, 9, 8


def tensors(heads: int, kv_heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, count, T, W, generator=generator) for count in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("hides", [False, True], ids=["all_visible", "some_hidden"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (4, 1)], ids=lambda n: str(n))
def test_attention_is_its_formula(heads: int, kv_heads: int, hides: bool, dtype: torch.dtype) -> None:
    q, k, v = tensors(heads, kv_heads)
    visible = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.5 if hides else None
    found = attend(q.to(dtype), k.to(dtype), v.to(dtype), visible)
    assert found.dtype == dtype
    expected = torch.zeros(B, heads, T, W)
    for b, head, t in torch.cartesian_prod(torch.arange(B), torch.arange(heads), torch.arange(T)).tolist():
        group = head // (heads // kv_heads)
        seen = [s for s in range(t + 1) if s == t or visible is None or visible[b, s]]
        shares = (k[b, group, seen] @ q[b, head, t] / W**0.5).softmax(-1)
        expected[b, head, t] = shares @ v[b, group, seen]
    tolerance = 1e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)
