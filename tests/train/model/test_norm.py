"""RMS norm on a CPU and layer norm, compared with torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptive_lm.train.model.norm import LayerNorm, OnCPU, RMSNorm


def values(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Draw x, the weight and the gradient of y."""
    generator = torch.Generator().manual_seed(4)
    made = [torch.randn(each, generator=generator, dtype=torch.float64) for each in (shape, shape[-1:], shape)]
    return [tensor.to(dtype) for tensor in (3 * made[0] + 1, made[1], made[2] + 0.5)]


def with_gradients(fast: bool, tensors: list[Tensor]) -> list[Tensor]:
    x, weight, of_y = (tensor.clone().requires_grad_() for tensor in tensors)
    y = OnCPU.apply(x, weight, 1e-5) if fast else F.rms_norm(x, weight.shape, weight, 1e-5)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), of_y)]


@pytest.mark.parametrize("shape", [(5, 16), (2, 7, 3, 8), (1, 1, 4)], ids=str)
def test_fewer_passes_give_the_same_norm_and_gradients(shape: tuple[int, ...]) -> None:
    tensors = values(shape, torch.float64)
    for found, expected in zip(with_gradients(True, tensors), with_gradients(False, tensors), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_many_rows_add_up_as_in_float64(dtype: torch.dtype, tolerance: float) -> None:
    """The gradient of the weight is a sum over all rows: 3,000 of them must not be added in bf16.

    In float32 they are added one after the other: sqrt(3000) 2^-24 of the largest, and some room.
    """
    tensors = values((3000, 32), dtype)
    exact = with_gradients(False, [tensor.double() for tensor in tensors])
    for found, expected in zip(with_gradients(True, tensors), exact, strict=True):
        assert found.dtype == dtype
        assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_transposed_input_is_normalised_where_it_lies() -> None:
    x, weight, of_y = values((2, 5, 3, 8), torch.float64)
    turned = [x.transpose(1, 2), weight, of_y.transpose(1, 2)]
    for found, expected in zip(with_gradients(True, turned), with_gradients(False, turned), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_layer_is_the_same_with_and_without_gradients() -> None:
    """Training and evaluation in float32 see one function."""
    norm, (x, weight, _) = RMSNorm(16, 1e-5), values((5, 16), torch.float32)
    with torch.no_grad():
        norm.weight.copy_(weight)
        plain = norm(x)
    torch.testing.assert_close(norm(x).detach(), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_layer_norm_is_torchs_own_with_its_parameters_in_the_dtype_of_x(dtype: torch.dtype) -> None:
    ours, theirs = LayerNorm(16, 1e-5), torch.nn.LayerNorm(16, 1e-5)
    x, weight, bias = values((5, 16), torch.float32)
    for norm in (ours, theirs):
        norm.load_state_dict({"weight": weight, "bias": bias[0]})
    y = ours(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y, theirs.to(dtype)(x.to(dtype)), rtol=0, atol=0)
