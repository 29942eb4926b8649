"""Linear layers whose float32 products are torch's or oneDNN's. M rows, K inputs, N outputs."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def onednn_mm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply a (M, K) @ b (K, N) -> (M, N) by oneDNN, like torch.mm; float32 on a CPU, also inside.

    `torch.mm` uses oneDNN for half precision only; inductor's operator for frozen linear layers uses it for float32.
    """
    if not a.numel() or not b.numel():
        return torch.mm(a, b, out=out)
    a, b = _densely(a), _densely(b)
    # oneDNN copies its first factor unless it is stored by rows, so give it the smaller one
    swapped = a.stride(0) == 1 and a.shape[0] > b.shape[1]
    left, right = (b.t(), a) if swapped else (a, b.t())
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    product = product.t() if swapped else product
    return product if out is None else out.copy_(product)


def _densely(matrix: Tensor) -> Tensor:
    """Return the matrix stored by rows or by columns without gaps; for others oneDNN takes 1600 times as long."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


@functools.cache
def has_onednn() -> bool:
    """Return whether this torch was built with oneDNN, and a small product is correct."""
    a, b = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4)
    try:
        return bool(torch.equal(onednn_mm(a, b), torch.mm(a, b)))
    except (AttributeError, RuntimeError):
        return False


@torch.library.custom_op("adaptive_lm::linear", mutates_args=())
def _forward(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x (..., K) by weight (N, K) -> (..., N)."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return onednn_mm(rows, weight.t()).view(*x.shape[:-1], len(weight))


@_forward.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.library.custom_op("adaptive_lm::linear_backward", mutates_args=())
def _backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (..., K) and weight (N, K), from that of the output (..., N)."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    of_rows = gradient.reshape(-1, gradient.shape[-1]).contiguous()
    of_x = onednn_mm(of_rows, weight).view(x.shape)
    return of_x, onednn_mm(of_rows.t(), rows).contiguous()


@_backward.register_fake
def _(_: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001  # torch.library's own signature
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, gradient):  # type: ignore[no-untyped-def]  # torch.library's own signature
    return _backward(gradient, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_keep)


def linear(x: Tensor, weight: Tensor, onednn: bool, bias: Tensor | None = None) -> Tensor:
    """Multiply x (..., K) by weight (N, K)^T and add bias (N,) -> (..., N), forward and backward by oneDNN or by torch.

    With oneDNN the product is one opaque operator for torch.compile.
    """
    if not onednn:
        return F.linear(x, weight, bias)
    out: Tensor = _forward(x, weight)
    return out if bias is None else out + bias


class _Frozen(torch.autograd.Function):
    """x W^T + b of a frozen W of another dtype, which is converted for each pass and not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None, None


class Linear(nn.Linear):
    """nn.Linear, by default without a bias; its weight may be frozen in another dtype than that of the input."""

    onednn = False
    """Whether oneDNN multiplies; only for float32 on a CPU, see `train/loop/setup/matmul_backend.py`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        self.adapter: nn.Module | None = None
        """Adds to the output, see `lora.py`."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K) by the weight and add the bias -> (..., N)."""
        if self.weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            assert not self.weight.requires_grad
            out: Tensor = _Frozen.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        else:
            out = linear(x, self.weight, self.onednn and self.weight.dtype == torch.float32, self.bias)
        return out if self.adapter is None else out + self.adapter(x)
