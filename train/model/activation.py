"""The activations of the feed-forward part, and their gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .config.sections import Activation

aten = torch.ops.aten


def activate(name: Activation, x: Tensor) -> Tensor:
    """Compute the activation of x, of any shape."""
    if name == "silu":
        return F.silu(x)
    return F.relu(x) if name == "relu" else F.gelu(x, approximate=_approximation(name))


def activate_into(name: str, x: Tensor, out: Tensor) -> None:
    """Write the activation of x to `out`."""
    if name == "silu":
        aten.silu.out(x, out=out)
    elif name == "relu":
        torch.clamp_min(x, 0, out=out)
    else:
        aten.gelu.out(x, approximate=_approximation(name), out=out)


def differentiate_into(name: str, gradient: Tensor, x: Tensor, out: Tensor) -> None:
    """Write the gradient of x to `out`, from that of the activation."""
    if name == "silu":
        aten.silu_backward.grad_input(gradient, x, grad_input=out)
    elif name == "relu":
        aten.threshold_backward.grad_input(gradient, x, 0, grad_input=out)
    else:
        aten.gelu_backward.grad_input(gradient, x, approximate=_approximation(name), grad_input=out)


def _approximation(name: str) -> str:
    return "tanh" if name == "gelu_tanh" else "none"
