"""The experts: FFNs that run only for the chosen (token, expert) pairs, forward and backward.

N tokens, D width, E experts, F hidden width of one expert, R rows = chosen pairs, padded per expert (r of one expert).
H is 2F where experts are gated (gate first), else F.
"""

from typing import Any

import torch
from torch import Tensor

from ..activation import activate_into, differentiate_into
from ..linear import onednn_mm
from . import native
from .form import SWIGLU, ExpertForm
from .plan import Plan, plan_rows, row_multiple, spans_of, sum_by_token


@torch.library.custom_op("adaptive_lm::experts_forward", mutates_args=())
def _forward(
    x: Tensor,
    weights: Tensor,
    selected: Tensor,
    gate_up: Tensor,
    down: Tensor,
    onednn: bool,
    activation: str,
    gated: bool,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
) -> list[Tensor]:
    """Run the experts.

    Returns:
        y (N, D); what the backward pass needs of each row, gate|up (R, H), act(gate) (R, F), act(gate) * up (R, F)
        and the expert's output (R, D); and the plan. Without a gate there is no act(gate), and act(up) takes the place
        of the product. In C++ only y and gate|up, whose width is rounded up.
    """
    if _in_cpp(x, weights, gate_up, activation, gated, gate_up_bias):
        return list(native.forward(x, weights, selected, gate_up, down))
    gate_up, down = gate_up.to(x.dtype), down.to(x.dtype)
    plan = plan_rows(selected, row_multiple(x, onednn))
    rows = x.index_select(0, plan.token)  # (R, D)
    both, width, dim = _widths(gate_up, gated)
    hidden, inner, answer = (rows.new_empty(len(rows), size) for size in (both, width, dim))
    act = rows.new_empty(len(rows) if gated else 0, width)
    mm = onednn_mm if onednn else torch.mm
    # one expert at a time, so that its results are still in the cache when they are read
    for expert, at in spans_of(plan):
        if at.stop == at.start:
            continue
        own = mm(rows[at], gate_up[expert], out=hidden[at])
        if gate_up_bias is not None:
            own.add_(gate_up_bias[expert])
        if gated:
            gate, up = own.chunk(2, -1)
            activate_into(activation, gate, act[at])
            torch.mul(act[at], up, out=inner[at])
        else:
            activate_into(activation, own, inner[at])
        mm(inner[at], down[expert], out=answer[at])
        if down_bias is not None:
            answer[at].add_(down_bias[expert])
    out = sum_by_token(answer, plan, weights[selected].to(x.dtype))
    return [out, hidden, act, inner, answer, *plan]


def _in_cpp(x: Tensor, weights: Tensor, gate_up: Tensor, activation: str, gated: bool, bias: Tensor | None) -> bool:
    """Return whether the C++ code runs the experts."""
    return activation == "silu" and gated and bias is None and native.fits(x, weights, gate_up)


def _widths(gate_up: Tensor, gated: bool) -> tuple[int, int, int]:
    """Return H, F, D, from gate_up (E, D, H)."""
    _, dim, both = gate_up.shape
    return both, both // 2 if gated else both, dim


@_forward.register_fake
def _(
    x: Tensor,
    weights: Tensor,
    selected: Tensor,
    gate_up: Tensor,
    down: Tensor,
    onednn: bool,
    activation: str,
    gated: bool,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
) -> list[Tensor]:
    context = torch.library.get_ctx()
    if _in_cpp(x, weights, gate_up, activation, gated, gate_up_bias):
        return [torch.empty_like(x), x.new_empty(context.new_dynamic_size(), native.hidden_width(gate_up))]
    rows, pairs = context.new_dynamic_size(), context.new_dynamic_size()
    both, width, dim = _widths(gate_up, gated)
    activations = [
        x.new_empty(*shape) for shape in ((rows, both), (rows if gated else 0, width), (rows, width), (rows, dim))
    ]
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
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    saved: list[Tensor],
    onednn: bool,
    activation: str,
    gated: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights, gate_up, down and the two biases, which are empty where there are none.

    `saved` is what `_forward` returns after y.
    """
    of_biases = [x.new_empty(0) if bias is None else torch.zeros_like(bias) for bias in (gate_up_bias, down_bias)]
    if _in_cpp(x, weights, gate_up, activation, gated, gate_up_bias):
        found = native.backward(gradient.to(x.dtype), x, weights, selected, gate_up, down, *saved)
        return *found, of_biases[0], of_biases[1]
    exact, gate_up, down = gate_up.dtype, gate_up.to(x.dtype), down.to(x.dtype)
    hidden, act, inner, answer = saved[:4]
    plan = Plan(*saved[4:])
    rows = x.index_select(0, plan.token)
    gradient_rows = gradient.to(x.dtype).index_select(0, plan.token)  # (R, D), of the weighted answer
    of_weight = (gradient_rows * answer).sum(-1, dtype=weights.dtype)
    of_weights = torch.zeros_like(weights).masked_scatter_(selected, of_weight.index_select(0, plan.row))
    scale = x.new_zeros(len(rows)).index_copy_(0, plan.row, weights[selected].to(x.dtype))
    of_answer = gradient_rows.mul_(scale[:, None])  # (R, D), 0 where a row belongs to no pair
    of_rows, of_gate_up, of_down = torch.empty_like(rows), torch.empty_like(gate_up), torch.empty_like(down)
    mm, spans = onednn_mm if onednn else torch.mm, list(spans_of(plan))
    most = max(at.stop - at.start for _, at in spans)
    of_hidden_of_most, of_inner_of_most = hidden.new_empty(most, hidden.shape[1]), torch.empty_like(inner[:most])
    for expert, at in spans:
        size = at.stop - at.start
        if not size:
            of_gate_up[expert].zero_()
            of_down[expert].zero_()
            continue
        of_hidden = of_hidden_of_most[:size]
        of_inner = mm(of_answer[at], down[expert].t(), out=of_inner_of_most[:size])  # (r, F)
        mm(inner[at].t(), of_answer[at], out=of_down[expert])
        if gated:
            (gate, up), (of_gate, of_up) = hidden[at].chunk(2, -1), of_hidden.chunk(2, -1)
            torch.mul(of_inner, act[at], out=of_up)
            differentiate_into(activation, of_inner.mul_(up), gate, of_gate)
        else:
            differentiate_into(activation, of_inner, hidden[at], of_hidden)
        mm(rows[at].t(), of_hidden, out=of_gate_up[expert])
        mm(of_hidden, gate_up[expert].t(), out=of_rows[at])
        for of_bias, of_product in zip(of_biases, (of_hidden, of_answer[at]), strict=True):
            if len(of_bias):
                of_bias[expert] = of_product.sum(0, dtype=of_bias.dtype)
    return sum_by_token(of_rows, plan), of_weights, of_gate_up.to(exact), of_down.to(exact), of_biases[0], of_biases[1]


@_backward.register_fake
def _(
    _: Tensor,
    x: Tensor,
    weights: Tensor,
    _selected: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    *_rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_biases = [x.new_empty(0) if bias is None else torch.empty_like(bias) for bias in (gate_up_bias, down_bias)]
    return (
        torch.empty_like(x), torch.empty_like(weights), torch.empty_like(gate_up), torch.empty_like(down),
        of_biases[0], of_biases[1],
    )  # fmt: skip


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch.library's own signature
    *tensors, ctx.onednn, ctx.activation, ctx.gated, gate_up_bias, down_bias = inputs
    ctx.save_for_backward(*tensors, gate_up_bias, down_bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx, gradients):  # type: ignore[no-untyped-def]  # torch.library's own signature
    x, weights, selected, gate_up, down, gate_up_bias, down_bias, *saved = ctx.saved_tensors  # read once: recomputing
    inputs = (x, weights, selected, gate_up, down, gate_up_bias, down_bias)
    found = _backward(gradients[0].contiguous(), *inputs, saved, ctx.onednn, ctx.activation, ctx.gated)
    of_x, of_weights, of_gate_up, of_down, of_gate_up_bias, of_down_bias = found
    of_biases = (None if gate_up_bias is None else of_gate_up_bias, None if down_bias is None else of_down_bias)
    return of_x, of_weights, None, of_gate_up, of_down, None, None, None, *of_biases


_forward.register_autograd(_differentiate, setup_context=_keep)


def run_experts(
    x: Tensor,
    weights: Tensor,
    selected: Tensor,
    gate_up: Tensor,
    down: Tensor,
    onednn: bool = False,
    form: ExpertForm = SWIGLU,
) -> Tensor:
    """Run the chosen experts of each token, and add up their weighted outputs.

        y_n = sum over the chosen e of g_ne (silu(x_n Wg_e) * (x_n Wu_e)) Wd_e

    One opaque operator for torch.compile: the numbers of rows depend on the data, and inside an operator they cost
    neither a graph break nor a guard. A pair that was not chosen is never multiplied, forward or backward.

    Args:
        x: (N, D).
        weights: (N, E) float32, the routing weights g.
        selected: (N, E) bool.
        gate_up: (E, D, H), gate first; may be of higher precision than x, whose dtype the products have.
        down: (E, F, D), likewise.
        onednn: Whether oneDNN multiplies; for float32 on a CPU.
        form: Activation, gate and biases.

    Returns:
        (N, D) in the dtype of x.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    out: Tensor = _forward(x, weights, selected, gate_up, down, onednn, *form)[0]
    return out
