"""Activation checkpointing of a block: which activations are kept, and which are computed again."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from .attention import blockwise  # noqa: F401  # registers its operator

aten = torch.ops.aten
DECISIONS = {
    aten.sort.stable,
    aten.lt.Tensor,
    aten.gt.Tensor,
    aten.ge.Tensor,
    aten.le.Scalar,
    aten.eq.Tensor,
}
"""Operators that decide routes: sorting, and comparison with a threshold. Their results are small."""
LONG_WORK = {
    torch.ops.adaptive_lm.attention_forward.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
}
"""Attention: its work grows with the square of the length, its result does not."""
KEPT = DECISIONS | LONG_WORK


def _policy(_: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return contexts


def run_recomputing(run: Callable[..., Any], *inputs: Any) -> Any:
    """Call run(*inputs) and keep only routing decisions and the results of attention for the backward pass.

    Routes are kept because a decision that changed in the second computation would give the gradients of another model
    than the one that ran. torch.compile traces this as part of a block, and its partitioner keeps the same results;
    wrapped around a compiled block it fails (decision 0022).

    Source: Chen et al. 2016 (arXiv 1604.06174). Departs from it: results of attention are kept. Its backward pass
    computes the scores again by itself (Dao et al. 2022, arXiv 2205.14135, section 3.1) and would do so twice.
    """
    return checkpoint(run, *inputs, use_reentrant=False, context_fn=_contexts)
