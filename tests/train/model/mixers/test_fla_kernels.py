"""The choice of fla's kernels, and what is handed to them: with functions of the same names and arguments in torch."""

import sys
from types import ModuleType

import pytest
import torch
from support.cover import rest_slow
from support.models import variant
from torch import Tensor

from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.mixers import kernels
from adaptive_lm.train.model.mixers.kernels import KERNELS, run_kernel, serve
from adaptive_lm.train.model.mixers.mixer import Mixer
from adaptive_lm.train.model.mixers.recurrence import recurrent

ROUNDED = 2e-2
"""Largest difference between a kernel in bfloat16 and the recurrence in float32, as a share of the spread."""
Outputs = tuple[Tensor, None]


def chunk_simple_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float, output_final_state: bool) -> Outputs:
    assert (g.dtype, output_final_state) == (torch.float32, False)
    return recurrent(scale * q.float(), k.float(), v.float(), g)[0].to(v.dtype), None


def chunk_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, output_final_state: bool
) -> Outputs:
    assert (g.dtype, beta.dtype, output_final_state) == (torch.float32, torch.float32, False)
    key, a = k.float(), -(g.exp() * beta)[..., None] * k.float()
    return recurrent(scale * q.float(), key, beta[..., None] * v.float(), g, a, key)[0].to(v.dtype), None


def chunk_rwkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, scale: float, output_final_state: bool
) -> Outputs:
    assert (w.dtype, output_final_state) == (torch.float32, False)
    inputs = [x.float() for x in (r, k, v, w, a, b)]
    return scale * recurrent(*inputs)[0].to(v.dtype), None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put functions of torch in the place of fla's, and return the names of those that are called."""
    names: list[str] = []

    def counted(function):
        def call(**given):
            names.append(function.__name__)
            halves = {"q", "k", "v", "r", "a", "b"}
            assert {name for name, x in given.items() if getattr(x, "dtype", None) == torch.bfloat16} <= halves
            assert all(x.is_contiguous() for x in given.values() if isinstance(x, Tensor))
            return function(**given)

        return call

    for kernel in KERNELS.values():
        module = ModuleType(kernel.module)
        setattr(module, kernel.function, counted(globals()[kernel.function]))
        monkeypatch.setitem(sys.modules, kernel.module, module)
    return names


def mixer_of(kind: str) -> Mixer:
    torch.manual_seed(1)
    mixer = Transformer(variant(mixers=kind)).blocks()[1].mixer
    assert mixer is not None
    return mixer


KINDS = {
    "retnet": "chunk_simple_gla",
    "mamba2": "chunk_simple_gla",
    "gated_delta": "chunk_gated_delta_rule",
    "rwkv7": "chunk_rwkv7",
}


@pytest.mark.parametrize(("kind", "function"), KINDS.items())
def test_a_mixer_gives_with_a_kernel_what_it_gives_without(kind: str, function: str, calls: list[str]) -> None:
    """Outputs and gradients under autocast, within the rounding of the kernel's inputs to bfloat16."""
    mixer, results = mixer_of(kind), []
    x = torch.randn(2, 21, 32, generator=torch.Generator().manual_seed(2))
    for uses in (False, True):
        mixer.kernels = lambda like, uses=uses: uses
        mixer.zero_grad()
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = mixer(given, None, None)
        out.float().square().mean().backward()
        gradients = [weight.grad for weight in mixer.parameters()]
        results.append([out.detach().float(), given.grad, *gradients])
        assert calls == ([function] * 2 if uses else []), "forward, and again in the backward pass"
    for one, other in zip(*results, strict=True):
        assert one is not None
        assert other is not None
        assert float((one - other).abs().max()) <= ROUNDED * max(float(one.std()), float(one.abs().max()))


def test_the_kernels_serve_half_precision_on_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Like:
        def __init__(self, device: str, dtype: torch.dtype) -> None:
            self.device, self.dtype = torch.device(device), dtype

    cases = [("cuda", torch.bfloat16), ("cuda", torch.float16), ("cuda", torch.float32), ("cpu", torch.bfloat16)]
    for installed, served in ((True, [True, True, False, False]), (False, [False] * 4)):
        monkeypatch.setattr(kernels, "INSTALLED", installed)
        assert [serve(Like(*case)) for case in cases] == served


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("kind", "function"), rest_slow(KINDS.items(), [("mamba2", "chunk_simple_gla")]))
def test_a_mixer_with_a_kernel_compiles_without_a_graph_break(kind: str, function: str, calls: list[str]) -> None:
    mixer = mixer_of(kind)
    mixer.kernels = lambda like: True
    x = torch.randn(2, 21, 32, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(mixer, fullgraph=True, dynamic=False, backend="aot_eager")
    outputs = []
    for run in (mixer, compiled):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = run(given, None, None)
        out.float().square().mean().backward()
        outputs.append((out, given.grad))
    assert calls == [function] * 4
    torch.testing.assert_close(*outputs)


@pytest.mark.skipif(not (kernels.INSTALLED and torch.cuda.is_available()), reason="needs CUDA and the package fla")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_of_fla_give_what_the_plain_form_gives(kind: str) -> None:
    torch.manual_seed(1)
    mixer = Transformer(variant(mixers=kind, dim=128, num_heads=2, num_kv_heads=2)).blocks()[1].mixer
    assert mixer is not None
    mixer, results = mixer.cuda(), []
    x = torch.randn(2, 200, 128, generator=torch.Generator().manual_seed(2)).cuda()
    for uses in (False, True):
        mixer.kernels = lambda like, uses=uses: uses
        mixer.zero_grad()
        given = x.clone().requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = mixer(given, None, None)
        out.float().square().mean().backward()
        results.append([out.float(), given.grad, *(weight.grad for weight in mixer.parameters())])
    for one, other in zip(*results, strict=True):
        assert float((one - other).abs().max()) <= ROUNDED * max(float(one.std()), float(one.abs().max()))


def test_a_kernel_gets_its_inputs_in_their_order(calls: list[str]) -> None:
    generator = torch.Generator().manual_seed(4)
    r, k, v, a, b = (torch.randn(1, 6, 2, 4, generator=generator) for _ in range(5))
    log_w = -torch.rand(1, 6, 2, 4, generator=generator)
    out = run_kernel("delta", torch.float32, r, k, v, log_w, 0.1 * a, b)
    torch.testing.assert_close(out, recurrent(r, k, v, log_w, 0.1 * a, b)[0])
    assert calls == ["chunk_rwkv7"]
