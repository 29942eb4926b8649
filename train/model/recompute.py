"""Which activations of a block are kept when the rest are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from . import experts, linear  # noqa: F401  # they register their operators

aten = torch.ops.aten
DECISIONS = {
    aten.sort.stable,
    aten.lt.Tensor,
    aten.gt.Tensor,
    aten.ge.Tensor,
}
"""What routes are made of: ranks, and comparisons with a threshold. Small, and never taken twice."""
COSTLY = {
    aten.mm.default,
    torch.ops.adaptive_lm.linear.default,
    torch.ops.adaptive_lm.experts_forward.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
}
"""Much work for what they take up."""


def _policy(_: Any, operator: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = operator in DECISIONS or operator in COSTLY
    if operator is aten.bmm.default:  # attention to the values, but not the scores, which grow with the length squared
        shares, values = args
        kept = values.shape[2] < shares.shape[2]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return contexts


def run_recomputing(run: Callable[..., Any], *inputs: Any) -> Any:
    """run(*inputs), of which only the decisions of the routers and the costly products are kept.

    Routes are kept because a decision that came out otherwise the second time would give gradients of another model
    than the one that ran. torch.compile traces this as part of a block, and its partitioner keeps the same things;
    around a compiled block, from outside, it fails (decision 0017).

    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 5: recompute what is large and cheap, the core of
    attention above all.
    """
    return checkpoint(run, *inputs, use_reentrant=False, context_fn=_contexts)
