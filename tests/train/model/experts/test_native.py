"""The experts in C++, compared with torch's and with all pairs in float64. N tokens, D width, E experts, F hidden."""

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from support.pairs import CHOICES, EXPERTS, routed, run_experts_plainly
from torch import Tensor

from adaptive_lm.train.model.experts import native
from adaptive_lm.train.model.experts.experts import run_experts
from adaptive_lm.train.model.experts.form import SWIGLU
from adaptive_lm.train.run.identity import compare_identity

E = EXPERTS
FORWARD = torch.ops.adaptive_lm.experts_forward.default
TOLERANCE = 2e-2
"""Tolerance of bf16 relative to the largest value, as for the experts of torch (`test_experts.py`)."""
NAMES = "out", "x", "weights", "gate_up", "down"

pytestmark = pytest.mark.skipif(native.library() is None, reason="needs AVX512-BF16 without AMX, and a C++ compiler")


SHAPES = [(23, 16, 1), (23, 48, 16), (64, 96, 37), (700, 32, 40), (31, 128, 215)]
"""(N, D, F): one vector, tails of rows, columns and pairs, several blocks of rows to an expert, and the benchmark's."""


def arguments(shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Draw x, whose values are bf16, weights, gate_up and down, all with requires_grad."""
    tokens, D, F = shape
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(tokens, D, generator=generator).bfloat16()
    weights = torch.rand(tokens, E, generator=generator)
    gate_up = torch.randn(E, D, 2 * F, generator=generator) * D**-0.5
    down = torch.randn(E, F, D, generator=generator) * F**-0.5
    return [tensor.to(dtype).requires_grad_() for tensor in (x, weights, gate_up, down)]


def with_gradients(run: Callable[..., Tensor], selected: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of the tensors under one random gradient of the output."""
    x, weights, gate_up, down = tensors
    out = run(x, weights, selected, gate_up, down)
    of_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).bfloat16().to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, of_out)]


def in_half(selected: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return with_gradients(run_experts, selected, tensors)


def require_near(found: list[Tensor], exact: list[Tensor]) -> None:
    for name, half, full in zip(NAMES, found, exact, strict=True):
        scale = full.abs().max().clamp(min=1e-30)
        assert (half.double() - full.double()).abs().max() <= TOLERANCE * scale, name


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "N{}-D{}-F{}".format(*shape))
@pytest.mark.parametrize("chosen", CHOICES)
def test_it_gives_what_all_pairs_give_in_float64(chosen: str, shape: tuple[int, int, int]) -> None:
    selected = routed(chosen, shape[0])
    assert len(FORWARD(*(t.detach() for t in half(arguments(shape), selected)), False, *SWIGLU)) == 2, "not run in C++"
    found = in_half(selected, arguments(shape))
    exact = with_gradients(run_experts_plainly, selected, arguments(shape, torch.float64))
    require_near(found, exact)
    assert found[0].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in found[1:])
    assert (found[2][~selected] == 0).all()


def half(tensors: list[Tensor], selected: Tensor) -> tuple[Tensor, ...]:
    x, weights, gate_up, down = tensors
    return x.bfloat16(), weights, selected, gate_up, down


@pytest.mark.parametrize("chosen", [chosen for chosen in CHOICES if chosen != "one_pair"])
def test_a_machine_without_it_gives_the_same_to_rounding(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for one pair: the gradient of its weight is a single number in which large ones cancel out."""
    shape = (64, 96, 37)
    selected = routed(chosen, shape[0])
    found = in_half(selected, arguments(shape))
    monkeypatch.setattr(native, "library", lambda: None)
    assert len(FORWARD(*(t.detach() for t in half(arguments(shape), selected)), False, *SWIGLU)) > 2, "run in C++"
    require_near(found, in_half(selected, arguments(shape)))


@pytest.mark.parametrize("chosen", ["mixed", "all_pairs"])
def test_threads_change_no_bit(chosen: str) -> None:
    shape = (700, 32, 40)
    selected, threads = routed(chosen, shape[0]), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3, 1):
            torch.set_num_threads(number)
            found.append(in_half(selected, arguments(shape)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_a_pair_that_was_not_chosen_is_never_multiplied() -> None:
    shape = (64, 96, 37)
    selected = routed("mixed", shape[0])
    selected[:, 3] = False
    selected[5] = False
    x, weights, gate_up, down = arguments(shape)
    with torch.no_grad():
        gate_up[3], down[3], weights[:, 3], x[5] = (float("nan") for _ in range(4))
    out, *gradients = in_half(selected, [x, weights, gate_up, down])
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[2][3] == 0).all()
    assert (gradients[3][3] == 0).all()
    assert (out[5] == 0).all()
    assert (gradients[0][5] == 0).all()


def test_gates_beyond_what_exp_holds_stay_finite() -> None:
    shape = (23, 16, 16)
    tensors = arguments(shape)
    with torch.no_grad():
        tensors[2][:, :, :16].mul_(1e25)
    selected = routed("all_pairs", shape[0])
    exact = with_gradients(run_experts_plainly, selected, [t.detach().double().requires_grad_() for t in tensors])
    require_near(in_half(selected, tensors), exact)


def test_tensors_need_not_lie_in_one_piece() -> None:
    shape = (64, 96, 37)
    selected = routed("mixed", shape[0])
    x, weights, gate_up, down = (tensor.detach() for tensor in arguments(shape))
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for t in (x, weights, gate_up, down)]
    assert not any(tensor.is_contiguous() for tensor in turned)
    straight = in_half(selected, arguments(shape))
    bent = in_half(selected.t().contiguous().t(), turned)
    assert all(torch.equal(one, two) for one, two in zip(straight, bent, strict=True))


def test_the_operator_keeps_the_rules_of_torch() -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for chosen in ("mixed", "no_pairs"):
        x, weights, selected, gate_up, down = half(arguments((23, 16, 6)), routed(chosen, 23))
        torch.library.opcheck(
            FORWARD, (x.detach().requires_grad_(), weights, selected, gate_up, down, False, *SWIGLU), test_utils=tests
        )


def test_what_it_keeps_is_gate_and_up_of_the_pairs_chosen() -> None:
    shape = (64, 96, 37)
    selected = routed("mixed", shape[0])
    _, hidden = FORWARD(*(t.detach() for t in half(arguments(shape), selected)), False, *SWIGLU)
    assert hidden.shape == (selected.sum(), 2 * 48)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_there_is_none(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTIVE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    assert native.library.__wrapped__() is None
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.slow
def test_it_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIVE_CACHE", str(tmp_path))
    assert native.library.__wrapped__() is not None
    (built,) = tmp_path.rglob("*.so")
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    before = built.stat()
    assert native.library.__wrapped__() is not None
    after = built.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "built again"


@pytest.mark.parametrize("name", ["experts.cpp", "plan.h", "products.h", "vectors.h"])
def test_it_is_built_again_after_a_change_of_any_source(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler here writes an empty file: only whether it is called counts."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nfor out; do :; done\n: > "$out"\n')
    compiler.chmod(0o755)
    shutil.copytree(native.SOURCES, tmp_path / "src")
    monkeypatch.setattr(native, "SOURCES", tmp_path / "src")
    monkeypatch.setenv("ADAPTIVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))

    def built() -> int:
        assert native.library.__wrapped__() is None
        return len(list(tmp_path.rglob("*.so")))

    assert (built(), built()) == (1, 1)
    with (tmp_path / "src" / name).open("a") as file:
        file.write("// changed\n")
    assert built() == 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADAPTIVE_CACHE", str(tmp_path / "file"))
    assert native.library.__wrapped__() is None


def test_a_run_that_goes_on_in_other_code_is_told_so() -> None:
    """A checkpoint without this entry is from before there was C++."""
    same = {"device": "cpu", "precision": "bf16", "threads": 1, "ranks": 1, "tokenizer_sha256": "a", "data_digest": "b"}
    for state, notes in (({}, 1), ({"kernels": "torch"}, 1), ({"kernels": "C++"}, 0)):
        display = Mock()
        compare_identity(Mock(), Mock(state=same | state), same | {"kernels": "C++"}, display)
        messages = [call.args[0] for call in display.log.call_args_list]
        assert messages == ["note: kernels was torch and is C++: results differ in the last bits"] * notes
