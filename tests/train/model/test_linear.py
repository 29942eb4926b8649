"""Products of matrices by oneDNN: they are those of float32, forward and backward. M rows, K in, N out."""

import copy
from collections.abc import Callable

import pytest
import torch
from support.models import V, tiny_ids, tiny_model
from torch import Tensor

from adaptive_lm.train.model import LossConfig, training_loss
from adaptive_lm.train.model import linear as linear_module
from adaptive_lm.train.model.experts import experts as experts_module
from adaptive_lm.train.model.linear import Linear, has_onednn, linear, onednn_mm

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")

SHAPES = [(2048, 128, 384), (400, 216, 128), (64, 2048, 96), (7, 5, 3), (1, 16, 8), (16, 1, 8), (16, 8, 1), (1, 1, 1)]
AS_IT_LIES: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda matrix: matrix,
    "columns": lambda matrix: matrix.t().contiguous().t(),
    "part": lambda matrix: torch.cat([matrix, matrix], 1)[:, : matrix.shape[1]],
}
FLOAT32 = 2.0**-24
"""Half of the last bit. A sum of K such products is wrong by about sqrt(K) of these, in the root of the mean square;
one rounding to bfloat16 on the way would be 2^-9."""


def off(found: Tensor, exact: Tensor) -> float:
    """Return the root mean square error, relative to the root mean square of the result."""
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("right", AS_IT_LIES)
@pytest.mark.parametrize("left", AS_IT_LIES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_a_product_is_that_of_float32_however_its_factors_lie(
    shape: tuple[int, int, int], left: str, right: str
) -> None:
    rows, inner, columns = shape
    a, b = AS_IT_LIES[left](drawn(rows, inner)), AS_IT_LIES[right](drawn(inner, columns, seed=1))
    found, exact = onednn_mm(a, b), a.double() @ b.double()
    assert found.shape == exact.shape
    assert off(found, exact) <= inner**0.5 * FLOAT32
    into = torch.full_like(found, float("nan"))
    assert onednn_mm(a, b, out=into) is into
    assert torch.equal(into, found)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_has_the_same_bits_each_time(threads: int) -> None:
    before = torch.get_num_threads()
    a, b = drawn(513, 300).t(), drawn(513, 130, seed=1)
    torch.set_num_threads(1)
    first = onednn_mm(a, b)
    torch.set_num_threads(threads)
    assert all(torch.equal(onednn_mm(a, b), first) for _ in range(5))
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5), (0, 5), (1, 1, 5)], ids=str)
def test_a_layer_has_the_output_and_the_gradients_of_torchs(shape: tuple[int, ...]) -> None:
    x, weight, of_out = drawn(*shape), drawn(7, shape[-1], seed=1), drawn(*shape[:-1], 7, seed=2)

    def all_of(dtype: torch.dtype, onednn: bool, gradient: Tensor) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        out = linear(inputs[0], inputs[1], onednn)
        return [out.detach(), *torch.autograd.grad(out, inputs, gradient.to(dtype))]

    spread = of_out[..., :1].expand(of_out.shape)  # a gradient that is not contiguous
    for gradient in (of_out, spread):
        found = all_of(torch.float32, True, gradient)
        for one, exact in zip(found, all_of(torch.float64, False, gradient), strict=True):
            torch.testing.assert_close(one.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("onednn", [False, True])
def test_a_bias_is_added_and_gets_its_gradient(onednn: bool) -> None:
    layer = Linear(5, 7, bias=True)
    layer.onednn = onednn
    x, of_out = drawn(6, 5), drawn(6, 7, seed=2)
    out = layer(x)
    torch.testing.assert_close(out, x @ layer.weight.t() + layer.bias, rtol=0, atol=1e-6)
    of_weight, of_bias = torch.autograd.grad(out, [layer.weight, layer.bias], of_out)
    torch.testing.assert_close(of_bias, of_out.sum(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(of_weight, of_out.t() @ x, rtol=0, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == (torch.float32 if onednn else torch.bfloat16)


def test_the_operator_keeps_the_rules_of_torch() -> None:
    """Its schema, fake implementation and gradient, which torch.compile relies on."""
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for x in (drawn(6, 5), drawn(2, 3, 5), drawn(5, 6).t()):
        inputs = (x.requires_grad_(), drawn(7, 5, seed=1).requires_grad_())
        torch.library.opcheck(torch.ops.adaptive_lm.linear.default, inputs, test_utils=tests)
        gradient = drawn(*x.shape[:-1], 7, seed=2)
        backward = torch.ops.adaptive_lm.linear_backward.default
        torch.library.opcheck(backward, (gradient, *inputs), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("of_layers", "of_experts"), [(True, False), (False, True), (True, True), (False, False)])
def test_a_model_multiplies_by_what_it_was_told(
    of_layers: bool, of_experts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"linear": 0, "experts": 0}

    def counted(kind: str) -> Callable[..., Tensor]:
        def count(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
            calls[kind] += 1
            return onednn_mm(a, b, out=out)

        return count

    monkeypatch.setattr(linear_module, "onednn_mm", counted("linear"))
    monkeypatch.setattr(experts_module, "onednn_mm", counted("experts"))
    model = copy.deepcopy(tiny_model("top_p")).train()
    ids = tiny_ids(0)
    before = model(ids).logits
    assert calls == {"linear": 0, "experts": 0}
    model.use_onednn(linear=of_layers, experts=of_experts)
    out = model(ids)
    torch.testing.assert_close(out.logits, before, rtol=0, atol=1e-4)
    forward = dict(calls)
    training_loss(model, out, ids % V, torch.ones_like(ids, dtype=torch.bool), LossConfig())[0].backward()
    layers = sum(isinstance(module, Linear) for module in model.modules())
    assert forward["linear"] == layers * of_layers
    assert (forward["experts"] > 0) == of_experts
    assert calls == {kind: 3 * number for kind, number in forward.items()}  # the gradients of both factors


def test_products_that_are_computed_again_are_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """T38 with oneDNN: the forward pass runs a second time, by the same products, and no gradient differs by a bit."""
    calls, gradients = [0], []

    def count(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
        calls[-1] += 1
        return onednn_mm(a, b, out=out)

    monkeypatch.setattr(linear_module, "onednn_mm", count)
    model = copy.deepcopy(tiny_model("top_p")).train()
    model.use_onednn(linear=True, experts=True)
    ids = tiny_ids(0)
    for recomputing in (False, True):
        calls.append(0)
        out = model(ids, checkpoint_activations=recomputing)
        loss, _ = training_loss(model, out, ids % V, torch.ones_like(ids, dtype=torch.bool), LossConfig())
        gradients.append(torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.ndim > 1]))
    assert 0 < calls[1] < calls[2] <= calls[1] * 4 / 3  # of three products one is of the forward pass
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
