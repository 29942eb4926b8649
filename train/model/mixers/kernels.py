"""Kernels of flash-linear-attention (package `fla`) for the recurrences, on CUDA in half precision.

They multiply what a chunk reads and writes in bfloat16 and keep the states in float32, so their results differ from the
other forms by the rounding of their inputs. In float32 they are not used: there they multiply in TF32.

B batch, T time, H heads, K width of keys, V width of values.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

INSTALLED = importlib.util.find_spec("fla") is not None
"""Whether `fla` is there; it is imported when a kernel first runs."""


class Kernel(NamedTuple):
    """A function of `fla.ops` for one kind of recurrence, and the names of its inputs."""

    module: str
    function: str
    inputs: tuple[str, ...]


KERNELS = {
    "simple_gla": Kernel("fla.ops.simple_gla", "chunk_simple_gla", ("q", "k", "v", "g")),
    "gated_delta": Kernel("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", ("q", "k", "v", "g", "beta")),
    "delta": Kernel("fla.ops.rwkv7", "chunk_rwkv7", ("r", "k", "v", "w", "a", "b")),
}
"""The decays `g` and `w` are logarithms: (B, T, H), of `delta` (B, T, H, K). `beta` is (B, T, H), all others (B, T, H,
K or V)."""


def serve(x: Tensor) -> bool:
    """Return whether the kernels serve a mixer whose projections are like x: on CUDA, in half precision, installed."""
    return INSTALLED and x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)


def run_kernel(name: str, dtype: torch.dtype, *inputs: Tensor) -> Tensor:
    """Run a kernel from a zero state: inputs of KERNELS -> (B, T, H, V) float32.

    Args:
        name: A key of KERNELS.
        dtype: The half precision in which to multiply; decays and `beta` stay in float32.
        inputs: In the order of the kernel, float32.
    """
    exact = ("g", "w", "beta")
    given = [x if arg in exact else x.to(dtype) for arg, x in zip(KERNELS[name].inputs, inputs, strict=True)]
    out: Tensor = _run(name, [x.contiguous() for x in given])
    return out.float()


def _call(name: str, inputs: list[Tensor]) -> Tensor:
    kernel = KERNELS[name]
    function: Callable[..., tuple[Tensor, Tensor | None]] = getattr(
        importlib.import_module(kernel.module), kernel.function
    )
    return function(**dict(zip(kernel.inputs, inputs, strict=True)), scale=1.0, output_final_state=False)[0]


@torch.library.custom_op("adaptive_lm::fla", mutates_args=())
def _run(name: str, inputs: list[Tensor]) -> Tensor:
    """Run a kernel. An operator, because torch.compile cannot look into fla's functions without a graph break."""
    return _call(name, inputs)


@_run.register_fake
def _(name: str, inputs: list[Tensor]) -> Tensor:  # noqa: ARG001  # the operator's signature
    return torch.empty_like(inputs[2])


@torch.library.custom_op("adaptive_lm::fla_backward", mutates_args=())
def _run_backward(name: str, gradient: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Return the gradients of the inputs. The kernel runs forward again, since an operator keeps only its tensors."""
    with _recording():
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = _call(name, leaves)
        return [x.contiguous() for x in torch.autograd.grad(out, leaves, gradient)]


@_run_backward.register_fake
def _(name: str, gradient: Tensor, inputs: list[Tensor]) -> list[Tensor]:  # noqa: ARG001  # the operator's signature
    return [torch.empty_like(x) for x in inputs]


@contextmanager
def _recording() -> Iterator[None]:
    """Let autograd record inside an operator, where torch has switched it off."""
    with (
        torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False),
        torch.enable_grad(),
    ):
        yield


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001  # torch.library's own signature
    ctx.name = inputs[0]
    ctx.save_for_backward(*inputs[1])


def _differentiate(ctx, gradient):  # type: ignore[no-untyped-def]  # torch.library's own signature
    return None, _run_backward(ctx.name, gradient.contiguous(), list(ctx.saved_tensors))


_run.register_autograd(_differentiate, setup_context=_keep)
