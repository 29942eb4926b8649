"""Token dispatch: tokens are sent to experts on other ranks, and their outputs back.

N tokens of this rank, D width, E experts, L = E / ranks experts of this rank, M tokens that arrive here.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..model.experts.experts import run_experts
from ..model.experts.form import SWIGLU, ExpertForm
from ..system import collectives


class _Exchange(torch.autograd.Function):
    """Sends rows to each rank and receives rows from each; the backward pass returns their gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        ctx.sent, ctx.received = sent, received
        return _exchange(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _exchange(gradient, ctx.received, ctx.sent), None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent)
    return out


def travel(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send the first sent[0] rows to rank 0, and so on; return received[0] rows from rank 0, and so on."""
    arrived: Tensor = _Exchange.apply(rows, sent, received)  # type: ignore[no-untyped-call]
    return arrived


class ExpertParallel:
    """`run_experts` over ranks.

    A token is sent once to each rank that has any of its experts, with their routing weights, and their weighted sum
    comes back. Rank r holds the experts r L to r L + L - 1.
    """

    def __init__(self, here: int) -> None:
        """Keep `here`, the number of experts of this rank (L)."""
        self.here = here

    def __call__(
        self,
        x: Tensor,
        weights: Tensor,
        selected: Tensor,
        gate_up: Tensor,
        down: Tensor,
        onednn: bool = False,
        form: ExpertForm = SWIGLU,
    ) -> Tensor:
        """Run the experts: x (N, D), weights (N, E) float32, selected (N, E) bool, gate_up (L, D, H), down (L, F, D).

        Returns:
            The weighted sum of each token's experts, (N, D).
        """
        ranks, here = collectives.ranks(), self.here
        by_rank = selected.view(-1, ranks, here).any(-1)  # (N, ranks)
        rank, token = by_rank.t().nonzero(as_tuple=True)  # (sent,), (sent,): by rank, then by token
        counts = by_rank.sum(0)  # (ranks,)
        coming = torch.empty_like(counts)
        dist.all_to_all_single(coming, counts)
        sent, received = counts.tolist(), coming.tolist()
        # A rank needs only the weights of its own experts. One message: the token, its weights, its choice.
        own = weights.view(-1, ranks, here)[token, rank]  # (sent, L)
        chosen = selected.view(-1, ranks, here)[token, rank].to(own.dtype)  # (sent, L)
        message = torch.cat([x[token].to(own.dtype), own, chosen], 1)  # (sent, D + 2L)
        arrived = travel(message, sent, received)  # (M, D + 2L)
        tokens, their_weights, their_choice = torch.split(arrived, [x.shape[1], here, here], 1)
        out = run_experts(tokens.to(x.dtype), their_weights, their_choice > 0.5, gate_up, down, onednn, form)  # (M, D)
        back = travel(out, received, sent)  # (sent, D)
        return torch.zeros_like(x, dtype=back.dtype).index_add(0, token, back)
