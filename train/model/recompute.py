"""Which activations of a block are kept when the rest are computed again in the backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from . import experts  # noqa: F401  # registers its operator

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


def run_recomputing(block: nn.Module, *inputs: Any) -> Any:
    """block(*inputs), of which only the decisions of the routers and the costly products are kept.

    Routes are kept because a decision that came out otherwise the second time would give gradients of another model
    than the one that ran. A compiled block is run again whole, by the same code on the same numbers: its code uses the
    memory of one product for the next, so what was kept of it would be overwritten.

    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 5: recompute what is large and cheap, the core of
    attention above all.
    """
    if block._compiled_call_impl is not None:
        return checkpoint(block, *inputs, use_reentrant=False)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_contexts)
