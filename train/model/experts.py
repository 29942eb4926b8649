"""The experts: SwiGLU FFNs that run only for the chosen (token, expert) pairs, forward and backward.

N tokens, D width, E experts, F hidden width of one expert, R rows = chosen pairs, padded per expert (r of one expert).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .linear import onednn_mm

ROW_MULTIPLE = 64
"""Rows of an expert are padded to a multiple of this. oneDNN compiles a kernel for each new number of rows, and padding
leaves few different numbers (bf16 aten::mm 108 -> 23 ms)."""


class Plan(NamedTuple):
    """The row of each chosen pair: rows sorted by expert, the rows of each expert padded to a multiple.

    A padding row computes token 0; its result is never read, and its gradient is 0.
    """

    token: Tensor  # (R,) int64: the token of each row
    row: Tensor  # (pairs,) int64: the row of each pair, in order of token, then expert
    first: Tensor  # (N,) int64: where a token's pairs begin in `row`
    ends: Tensor  # (E,) int64 on the CPU: where each expert's rows end


def plan_rows(selected: Tensor, multiple: int) -> Plan:
    """Assign rows to the pairs of `selected` (N, E) bool."""
    rank = selected.cumsum(0)  # (N, E), from 1
    counts = selected.sum(0)  # not rank[-1], which fails where there is no token
    padded = (counts + multiple - 1) // multiple * multiple
    row = (rank + (padded.cumsum(0) - padded - 1))[selected]
    used = selected.sum(1)
    ends = padded.cumsum(0).cpu()
    token = torch.arange(len(used), device=used.device).repeat_interleave(used, output_size=len(row))
    rows = token.new_zeros(int(ends[-1])).index_copy_(0, row, token)
    return Plan(rows, row, used.cumsum(0) - used, ends)


def row_multiple(x: Tensor, onednn: bool) -> int:
    """Return the multiple to which the rows of an expert are padded; 1 where oneDNN does not multiply."""
    return ROW_MULTIPLE if x.device.type == "cpu" and (x.dtype == torch.bfloat16 or onednn) else 1


def _spans(plan: Plan) -> Iterator[tuple[int, slice]]:
    """Yield each expert with its rows, in order."""
    ends = plan.ends.tolist()
    for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        yield expert, slice(start, end)


def _sum_by_token(rows: Tensor, plan: Plan, scale: Tensor | None = None) -> Tensor:
    """Sum the rows of each token's pairs: rows (R, D), scale (pairs,) in order of token -> (N, D)."""
    return F.embedding_bag(plan.row, rows, plan.first, mode="sum", per_sample_weights=scale)


@torch.library.custom_op("adaptive_lm::experts_forward", mutates_args=())
def _forward(x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor, onednn: bool) -> list[Tensor]:
    """Run the experts.

    Returns:
        y (N, D); what the backward pass needs of each row, gate|up (R, 2F), silu(gate) (R, F), silu(gate) * up (R, F)
        and the expert's output (R, D); and the plan. In C++ only y and gate|up, whose width is rounded up.
    """
    if native.fits(x, weights, gate_up):
        return list(native.forward(x, weights, selected, gate_up, down))
    gate_up, down = gate_up.to(x.dtype), down.to(x.dtype)
    plan = plan_rows(selected, row_multiple(x, onednn))
    rows = x.index_select(0, plan.token)  # (R, D)
    hidden, silu, inner, answer = (rows.new_empty(len(rows), size) for size in _widths(gate_up))
    mm = onednn_mm if onednn else torch.mm
    # one expert at a time, so that its results are still in the cache when they are read
    for expert, at in _spans(plan):
        if at.stop == at.start:
            continue
        gate, up = mm(rows[at], gate_up[expert], out=hidden[at]).chunk(2, -1)
        torch.ops.aten.silu.out(gate, out=silu[at])
        torch.mul(silu[at], up, out=inner[at])
        mm(inner[at], down[expert], out=answer[at])
    out = _sum_by_token(answer, plan, weights[selected].to(x.dtype))
    return [out, hidden, silu, inner, answer, *plan]


def _widths(gate_up: Tensor) -> tuple[int, int, int, int]:
    """Return 2F, F, F, D, from gate_up (E, D, 2F)."""
    _, dim, double = gate_up.shape
    return double, double // 2, double // 2, dim


@_forward.register_fake
def _(x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor, onednn: bool) -> list[Tensor]:
    context = torch.library.get_ctx()
    if native.fits(x, weights, gate_up):
        return [torch.empty_like(x), x.new_empty(context.new_dynamic_size(), native.hidden_width(gate_up))]
    rows, pairs = context.new_dynamic_size(), context.new_dynamic_size()
    activations = [x.new_empty(rows, size) for size in _widths(gate_up)]
    plan = [selected.new_empty(size, dtype=torch.int64) for size in (rows, pairs, len(x))]
    ends = torch.empty(len(gate_up), dtype=torch.int64, device="cpu")
    return [torch.empty_like(x), *activations, *plan, ends]


@torch.library.custom_op("adaptive_lm::experts_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    x: Tensor,
    weights: Tensor,
    selected: Tensor,
    gate_up: Tensor,
    down: Tensor,
    saved: list[Tensor],
    onednn: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights, gate_up and down; `saved` is what `_forward` returns after y."""
    if native.fits(x, weights, gate_up):
        return native.backward(gradient.to(x.dtype), x, weights, selected, gate_up, down, *saved)
    exact, gate_up, down = gate_up.dtype, gate_up.to(x.dtype), down.to(x.dtype)
    hidden, silu, inner, answer = saved[:4]
    plan = Plan(*saved[4:])
    rows = x.index_select(0, plan.token)
    gradient_rows = gradient.to(x.dtype).index_select(0, plan.token)  # (R, D), of the weighted answer
    of_weight = (gradient_rows * answer).sum(-1, dtype=weights.dtype)
    of_weights = torch.zeros_like(weights).masked_scatter_(selected, of_weight.index_select(0, plan.row))
    scale = x.new_zeros(len(rows)).index_copy_(0, plan.row, weights[selected].to(x.dtype))
    of_answer = gradient_rows.mul_(scale[:, None])  # (R, D), 0 where a row belongs to no pair
    of_rows, of_gate_up, of_down = torch.empty_like(rows), torch.empty_like(gate_up), torch.empty_like(down)
    mm, spans = onednn_mm if onednn else torch.mm, list(_spans(plan))
    most = max(at.stop - at.start for _, at in spans)
    of_hidden_of_most, of_inner_of_most = hidden.new_empty(most, hidden.shape[1]), torch.empty_like(silu[:most])
    for expert, at in spans:
        size = at.stop - at.start
        if not size:
            of_gate_up[expert].zero_()
            of_down[expert].zero_()
            continue
        (gate, up), of_hidden = hidden[at].chunk(2, -1), of_hidden_of_most[:size]
        of_gate, of_up = of_hidden.chunk(2, -1)
        of_inner = mm(of_answer[at], down[expert].t(), out=of_inner_of_most[:size])  # (r, F)
        mm(inner[at].t(), of_answer[at], out=of_down[expert])
        torch.mul(of_inner, silu[at], out=of_up)
        torch.ops.aten.silu_backward.grad_input(of_inner.mul_(up), gate, grad_input=of_gate)
        mm(rows[at].t(), of_hidden, out=of_gate_up[expert])
        mm(of_hidden, gate_up[expert].t(), out=of_rows[at])
    return _sum_by_token(of_rows, plan), of_weights, of_gate_up.to(exact), of_down.to(exact)


@_backward.register_fake
def _(
    _: Tensor, x: Tensor, weights: Tensor, _selected: Tensor, gate_up: Tensor, down: Tensor, *_rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weights), torch.empty_like(gate_up), torch.empty_like(down)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch.library's own signature
    *tensors, ctx.onednn = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx, gradients):  # type: ignore[no-untyped-def]  # torch.library's own signature
    x, weights, selected, gate_up, down, *saved = ctx.saved_tensors
    gradient = gradients[0].contiguous()
    of_x, of_weights, of_gate_up, of_down = _backward(gradient, x, weights, selected, gate_up, down, saved, ctx.onednn)
    return of_x, of_weights, None, of_gate_up, of_down, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def run_experts(
    x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor, onednn: bool = False
) -> Tensor:
    """Run the chosen experts of each token, and add up their weighted outputs.

        y_n = sum over the chosen e of g_ne (silu(x_n Wg_e) * (x_n Wu_e)) Wd_e

    One opaque operator for torch.compile: the numbers of rows depend on the data, and inside an operator they cost
    neither a graph break nor a guard. A pair that was not chosen is never multiplied, forward or backward.

    Args:
        x: (N, D).
        weights: (N, E) float32, the routing weights g.
        selected: (N, E) bool.
        gate_up: (E, D, 2F), gate first; may be of higher precision than x, whose dtype the products have.
        down: (E, F, D), likewise.
        onednn: Whether oneDNN multiplies; for float32 on a CPU.

    Returns:
        (N, D) in the dtype of x.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    out: Tensor = _forward(x, weights, selected, gate_up, down, onednn)[0]
    return out


def run_experts_plainly(x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return the same by running every expert for every token. It is slow; `run_experts` is tested against it."""
    gate, up = torch.einsum("nd,edf->enf", x, gate_up).chunk(2, -1)  # (E, N, F)
    every = torch.einsum("enf,efd->end", F.silu(gate) * up, down)  # (E, N, D)
    return torch.einsum("end,ne->nd", every, torch.where(selected, weights, 0.0).to(x.dtype))
