"""The experts: SwiGLU FFNs that run only for the (token, expert) pairs that were chosen, forward and backward.

N tokens, D width, E experts, F hidden width of one expert, R rows = chosen pairs, padded per expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_MULTIPLE = 64
"""oneDNN compiles a bf16 kernel for every new row count it meets; padded counts meet few (aten::mm 108 -> 23 ms)."""


class Plan(NamedTuple):
    """Where each chosen pair stands: rows sorted by expert, each expert's rows padded with zeros."""

    token: Tensor  # (pairs,) int64
    expert: Tensor  # (pairs,) int64, ascending
    row: Tensor  # (pairs,) int64
    ends: list[int]  # E row numbers, where each expert's rows end


def plan_rows(selected: Tensor, multiple: int) -> Plan:
    """selected (N, E) bool -> Plan."""
    expert, token = selected.t().nonzero(as_tuple=True)
    counts = selected.sum(0)
    padded = (counts + multiple - 1) // multiple * multiple
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
    row = torch.arange(len(token), device=selected.device) + shift[expert]
    return Plan(token, expert, row, padded.cumsum(0).tolist())


def _multiple(x: Tensor) -> int:
    return ROW_MULTIPLE if x.device.type == "cpu" and x.dtype == torch.bfloat16 else 1


def _rows(x: Tensor, plan: Plan) -> Tensor:
    """x (N, D) -> (R, D): each pair's token at its row, zeros between."""
    return x.new_zeros(plan.ends[-1], x.shape[1]).index_copy_(0, plan.row, x[plan.token])


def _grouped(rows: Tensor, weights: Tensor, plan: Plan) -> Tensor:
    """rows (R, I) @ weights (E, I, O) -> (R, O), each expert its own rows."""
    out = rows.new_empty(rows.shape[0], weights.shape[2])
    start = 0
    for weight, end in zip(weights.unbind(0), plan.ends, strict=True):
        if end > start:
            torch.mm(rows[start:end], weight, out=out[start:end])
        start = end
    return out


def _grouped_gradient(rows: Tensor, gradient: Tensor, like: Tensor, plan: Plan) -> Tensor:
    """rows (R, I), gradient (R, O) -> gradient of the weights (E, I, O); zero for an expert without rows."""
    out = torch.empty_like(like)
    start = 0
    for weight, end in zip(out.unbind(0), plan.ends, strict=True):
        if end > start:
            torch.mm(rows[start:end].t(), gradient[start:end], out=weight)
        else:
            weight.zero_()
        start = end
    return out


@torch.library.custom_op("adaptive_lm::experts_forward", mutates_args=())
def _forward(x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    plan = plan_rows(selected, _multiple(x))
    hidden = _grouped(_rows(x, plan), gate_up, plan)  # (R, 2F)
    gate, up = hidden.chunk(2, -1)
    out_rows = _grouped(F.silu(gate) * up, down, plan)  # (R, D)
    scale = weights[plan.token, plan.expert].to(x.dtype)
    out = torch.zeros_like(x).index_add_(0, plan.token, out_rows[plan.row] * scale[:, None])
    return out, hidden


@_forward.register_fake
def _(x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.library.get_ctx().new_dynamic_size()
    return torch.empty_like(x), x.new_empty(rows, gate_up.shape[2])


@torch.library.custom_op("adaptive_lm::experts_backward", mutates_args=())
def _backward(
    gradient: Tensor, x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    plan = plan_rows(selected, _multiple(x))
    gradient_rows = _rows(gradient.to(x.dtype), plan)  # (R, D), of the weighted output
    scale = x.new_zeros(plan.ends[-1]).index_copy_(0, plan.row, weights[plan.token, plan.expert].to(x.dtype))[:, None]
    gate, up = hidden.chunk(2, -1)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    inner = silu * up  # (R, F)
    through = _grouped(gradient_rows, down.transpose(1, 2), plan)  # (R, F): gradient of inner before its weight
    of_weight = (inner * through).sum(-1, dtype=weights.dtype)
    of_weights = torch.zeros_like(weights)
    of_weights[plan.token, plan.expert] = of_weight[plan.row]
    of_down = _grouped_gradient(inner * scale, gradient_rows, down, plan)
    through = through * scale
    of_hidden = torch.cat([through * up * (sigmoid + silu * (1 - sigmoid)), through * silu], -1)  # (R, 2F)
    of_gate_up = _grouped_gradient(_rows(x, plan), of_hidden, gate_up, plan)
    of_rows = _grouped(of_hidden, gate_up.transpose(1, 2), plan)
    of_x = torch.zeros_like(x).index_add_(0, plan.token, of_rows[plan.row])
    return of_x, of_weights, of_gate_up, of_down


@_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weights), torch.empty_like(gate_up), torch.empty_like(down)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch.library's own signature
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, gradient, _):  # type: ignore[no-untyped-def]  # torch.library's own signature
    of_x, of_weights, of_gate_up, of_down = _backward(gradient.contiguous(), *ctx.saved_tensors)
    return of_x, of_weights, None, of_gate_up, of_down


_forward.register_autograd(_differentiate, setup_context=_keep)


def run_experts(x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """y_n = sum over the chosen e of g_ne (silu(x_n Wg_e) * (x_n Wu_e)) Wd_e

    One opaque operator for torch.compile: the row counts depend on the data, and inside an operator they cost neither a
    graph break nor a guard. A pair that was not chosen is never multiplied, forward or backward.

    Args:
        x: (N, D). weights: (N, E) float32. selected: (N, E) bool.
        gate_up: (E, D, 2F), gate first. down: (E, F, D).
    Returns:
        (N, D) in the dtype of x.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
    out: Tensor = _forward(x, weights, selected, gate_up, down)[0]
    return out


def run_experts_plainly(x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The same by running every expert for every token: slow, and the judge of `run_experts`."""
    gate, up = torch.einsum("nd,edf->enf", x, gate_up).chunk(2, -1)  # (E, N, F)
    every = torch.einsum("enf,efd->end", F.silu(gate) * up, down)  # (E, N, D)
    return torch.einsum("end,ne->nd", every, torch.where(selected, weights, 0.0).to(x.dtype))
