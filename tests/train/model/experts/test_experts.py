"""Running only the chosen (token, expert) pairs, forward and backward. N tokens, D width, E experts, F hidden."""

from collections.abc import Callable

import pytest
import torch
from support.pairs import CHOICES, EXPERTS, routed, run_experts_plainly
from torch import Tensor

from adaptive_lm.train.model import FFNConfig, ModelConfig
from adaptive_lm.train.model.config.sections import Activation
from adaptive_lm.train.model.experts.experts import _forward, run_experts
from adaptive_lm.train.model.experts.form import SWIGLU, ExpertForm
from adaptive_lm.train.model.experts.moe import MoE
from adaptive_lm.train.model.experts.plan import ROW_MULTIPLE, plan_rows
from adaptive_lm.train.model.linear import has_onednn

N, D, E, F = 23, 8, EXPERTS, 6
BF16_TOLERANCE = 2e-2
"""Relative to the largest value: the eight bits of bf16, added over D and F and rounded once more per operation."""


def arguments(tokens: int = N, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Draw x (N, D), weights (N, E), gate_up (E, D, 2F) and down (E, F, D), all with requires_grad."""
    generator = torch.Generator().manual_seed(2)
    shapes = (tokens, D), (tokens, E), (E, D, 2 * F), (E, F, D)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


def with_gradients(run: Callable[..., Tensor], selected: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of x, weights, gate_up and down under one random gradient of the output."""
    x, weights, gate_up, down = tensors
    out = run(x, weights, selected, gate_up, down)
    generator = torch.Generator().manual_seed(3)
    of_out = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, of_out)]


@pytest.mark.parametrize("multiple", [1, 4], ids=["exact", "padded"])
@pytest.mark.parametrize("chosen", CHOICES)
def test_only_the_chosen_pairs_give_what_all_pairs_give(
    chosen: str, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptive_lm.train.model.experts.experts.row_multiple", lambda *_: multiple)
    selected = routed(chosen)
    fast = with_gradients(run_experts, selected, arguments())
    plain = with_gradients(run_experts_plainly, selected, arguments())
    for name, found, expected in zip(("out", "x", "weights", "gate_up", "down"), fast, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("chosen", ["mixed", "some_experts_empty", "no_pairs"])
def test_gradients_are_those_of_finite_differences(chosen: str) -> None:
    selected = routed(chosen, tokens=6)
    x, weights, gate_up, down = arguments(tokens=6)
    assert torch.autograd.gradcheck(
        lambda *t: run_experts(t[0], t[1], selected, t[2], t[3]), (x, weights, gate_up, down), fast_mode=True
    )


FORMS = [(act, gated) for act in ("silu", "gelu", "gelu_tanh", "relu") for gated in (True, False)]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize(("activation", "gated"), FORMS)
def test_every_form_of_expert_gives_what_all_pairs_give(activation: Activation, gated: bool, bias: bool) -> None:
    """Outputs and all gradients, those of biases too; an expert without a token has none."""
    selected = routed("some_experts_empty")
    generator = torch.Generator().manual_seed(5)
    both = F * (1 + gated)
    shapes = [(N, D), (N, E), (E, D, both), (E, F, D), *([(E, both), (E, D)] if bias else [])]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    form = ExpertForm(activation, gated, *tensors[4:])
    x, weights, stack, down = tensors[:4]
    outs = [run_experts(x, weights, selected, stack, down, form=form)]
    outs.append(run_experts_plainly(x, weights, selected, stack, down, form))
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-12)
    of_out = torch.randn(N, D, generator=generator, dtype=torch.float64)
    found, expected = (torch.autograd.grad(out, tensors, of_out) for out in outs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    if bias:
        idle = ~selected.any(0)
        assert idle.any()
        assert not found[4][idle].any()


@pytest.mark.slow
def test_the_operator_keeps_the_rules_of_torch() -> None:
    """Its schema, fake implementation and gradient, which torch.compile relies on."""
    x, weights, gate_up, down = arguments(dtype=torch.float32)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for chosen in ("mixed", "no_pairs"):
        torch.library.opcheck(_forward, (x, weights, routed(chosen), gate_up, down, False, *SWIGLU), test_utils=tests)


@pytest.mark.parametrize("chosen", CHOICES)
def test_bf16_rows_padded_for_the_cpu_agree_with_float32(chosen: str) -> None:
    selected = routed(chosen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(run_experts, selected, arguments(dtype=torch.float32))
    exact = with_gradients(run_experts_plainly, selected, arguments())
    assert found[0].dtype == torch.bfloat16
    for name, half, full in zip(("out", "x", "weights", "gate_up", "down"), found, exact, strict=True):
        scale = full.abs().max().clamp(min=1e-30)
        assert (half.double() - full).abs().max() <= BF16_TOLERANCE * scale, name


@pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("chosen", CHOICES)
def test_products_by_onednn_agree_with_float32(chosen: str) -> None:
    selected = routed(chosen)
    found = with_gradients(lambda *t: run_experts(*t, True), selected, arguments(dtype=torch.float32))
    exact = with_gradients(run_experts_plainly, selected, arguments())
    for name, one, full in zip(("out", "x", "weights", "gate_up", "down"), found, exact, strict=True):
        scale = full.abs().max().clamp(min=1e-30)
        assert (one.double() - full).abs().max() <= 2e-6 * scale, name


@pytest.mark.parametrize("multiple", [1, ROW_MULTIPLE])
@pytest.mark.parametrize("chosen", CHOICES)
def test_every_pair_has_a_row_of_its_own_among_those_of_its_expert(chosen: str, multiple: int) -> None:
    selected = routed(chosen)
    plan = plan_rows(selected, multiple)
    starts, ends = [0, *plan.ends.tolist()[:-1]], plan.ends.tolist()
    assert len(set(plan.row.tolist())) == len(plan.row)
    assert len(plan.token) == ends[-1]
    for row, (token, expert) in zip(plan.row.tolist(), selected.nonzero().tolist(), strict=True):
        assert plan.token[row] == token
        assert starts[expert] <= row < ends[expert]
    assert plan.first.tolist() == (selected.sum(1).cumsum(0) - selected.sum(1)).tolist()
    for count, start, end in zip(selected.sum(0).tolist(), starts, ends, strict=True):
        assert count <= end - start < count + multiple
        assert (end - start) % multiple == 0


def test_a_pair_that_was_not_chosen_is_never_multiplied() -> None:
    """NaN where no product should read: forward and backward stay finite, and the expert's gradient is exactly 0."""
    selected = routed("mixed")
    selected[:, 3] = False
    x, weights, gate_up, down = arguments(dtype=torch.float32)
    with torch.no_grad():
        gate_up[3], down[3], weights[:, 3] = float("nan"), float("nan"), float("nan")
    out, *gradients = with_gradients(run_experts, selected, [x, weights, gate_up, down])
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[2][3] == 0).all()
    assert (gradients[3][3] == 0).all()
    assert (gradients[1][~selected] == 0).all()


@pytest.mark.parametrize("chosen", CHOICES)
def test_the_rows_multiplied_are_the_pairs_chosen(chosen: str) -> None:
    """In bf16 on a CPU rounded up to a multiple per expert, as oneDNN compiles a kernel for every count it meets."""
    selected = routed(chosen)
    counts = selected.sum(0)
    x, weights, gate_up, down = (tensor.detach() for tensor in arguments(dtype=torch.float32))
    _, hidden, *_ = _forward(x, weights, selected, gate_up, down, False, *SWIGLU)
    assert len(hidden) == counts.sum()
    _, hidden, *_ = _forward(x.bfloat16(), weights, selected, gate_up.bfloat16(), down.bfloat16(), False, *SWIGLU)
    assert len(hidden) == ((counts + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE).sum()


def test_a_token_without_experts_gets_nothing() -> None:
    selected = routed("some_tokens_skip")
    x, weights, gate_up, down = arguments()
    out, of_x, *_ = with_gradients(run_experts, selected, [x, weights, gate_up, down])
    idle = ~selected.any(-1)
    assert idle.sum() >= N // 3
    assert (out[idle] == 0).all()
    assert (of_x[idle] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tokens_give_no_output_and_gradients_of_zero(dtype: torch.dtype) -> None:
    """A rank has no tokens if none chose its experts."""
    tensors = arguments(tokens=0, dtype=dtype)
    out, of_x, of_weights, of_gate_up, of_down = with_gradients(run_experts, routed("mixed", tokens=0), tensors)
    assert [out.shape, of_x.shape, of_weights.shape] == [(0, D), (0, D), (0, E)]
    for gradient, weight in ((of_gate_up, tensors[2]), (of_down, tensors[3])):
        assert gradient.shape == weight.shape
        assert (gradient == 0).all()


def test_fine_grained_experts_and_a_shared_one_have_the_weights_and_the_use_of_the_default() -> None:
    """The fields of docs/recipes.md: 30 experts of 54 at 4.4 per token and one of 108, in place of 8 of 216 at 1.6."""
    usual = FFNConfig()
    fine = FFNConfig(num_experts=30, expert_dim=54, experts_per_token=4.4, shared_expert_dim=108)

    def stacks(config: FFNConfig) -> int:
        moe = MoE(ModelConfig(vocab_size=8, ffn=config))
        return sum(weight.numel() for name, weight in moe.named_parameters() if "router" not in name)

    assert stacks(fine) == stacks(usual)
    used = [one.experts_per_token * one.expert_dim + one.shared_expert_dim for one in (fine, usual)]
    assert used[0] == pytest.approx(used[1], rel=0.001)
