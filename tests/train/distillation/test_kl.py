"""Divergences against plain numpy, over all tokens and over the stored ones."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptive_lm.train.distillation.kl import (
    TopTokens,
    divergence,
    forward_kl,
    reverse_kl,
    top_classes,
    top_tokens,
    whole_classes,
)

B, T, V = 2, 3, 11


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Make logits of a teacher and of a model, some of them far apart."""
    generator = torch.Generator().manual_seed(0)
    teacher, model = (3 * torch.randn(B, T, V, generator=generator, dtype=torch.float64) for _ in range(2))
    return teacher, model.requires_grad_()


def probabilities(logits: Tensor, temperature: float) -> NDArray[np.float64]:
    soft = logits.detach().numpy() / temperature
    powers = np.exp(soft - soft.max(-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return result


def kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (p * np.log(p / q)).sum(-1)
    return result


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_over_all_tokens_are_those_of_numpy(logits: tuple[Tensor, Tensor], temperature: float) -> None:
    teacher, model = logits
    p, q = probabilities(teacher, temperature), probabilities(model, temperature)
    classes = whole_classes(teacher, model, temperature)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(forward_kl(classes).detach(), kl(p, q), **close)
    np.testing.assert_allclose(reverse_kl(classes).detach(), kl(q, p), **close)
    np.testing.assert_allclose(divergence("forward", classes).detach(), kl(p, q), **close)
    np.testing.assert_allclose(divergence("reverse", classes).detach(), kl(q, p), **close)
    mixed = 0.7 * kl(p, q) + 0.3 * kl(q, p)
    np.testing.assert_allclose(divergence("mix", classes, 0.3).detach(), mixed, **close)


@pytest.mark.parametrize("count", [1, 4, V - 1, V])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_over_stored_tokens_join_the_rest_to_one_class(
    logits: tuple[Tensor, Tensor], count: int, temperature: float
) -> None:
    teacher, model = logits
    p, q = probabilities(teacher, temperature), probabilities(model, temperature)
    order = np.argsort(-p, -1)[..., :count]
    joined = []
    for each in (p, q):
        top = np.take_along_axis(each, order, -1)
        rest = 1 - top.sum(-1, keepdims=True)
        joined.append(top if count == V else np.concatenate([top, rest], -1))
    classes = top_classes(top_tokens(teacher, count, temperature), model, temperature)
    np.testing.assert_allclose(forward_kl(classes).detach(), kl(*joined), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reverse_kl(classes).detach(), kl(*reversed(joined)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("measure", [forward_kl, reverse_kl])
def test_more_stored_tokens_come_closer_to_the_whole_from_below(logits: tuple[Tensor, Tensor], measure) -> None:  # type: ignore[no-untyped-def]
    teacher, model = logits
    by_count = [measure(top_classes(top_tokens(teacher, count, 1.0), model, 1.0)) for count in range(1, V + 1)]
    for fewer, more in pairwise(by_count):
        assert (fewer <= more + 1e-6).all()
    assert (by_count[0] >= 0).all()
    torch.testing.assert_close(by_count[-1], measure(whole_classes(teacher, model, 1.0)))
    assert (by_count[0] < by_count[-1]).any()


@pytest.mark.parametrize("kind", ["forward", "reverse", "mix"])
@pytest.mark.parametrize("count", [2, V])
def test_the_gradient_of_stored_tokens_is_finite_and_right(
    logits: tuple[Tensor, Tensor], kind: str, count: int
) -> None:
    teacher, model = logits
    top = top_tokens(teacher, count, 1.0)

    def value(changed: Tensor) -> Tensor:
        return divergence(kind, top_classes(top, changed, 1.0)).sum()  # type: ignore[arg-type]

    value(model).backward()  # type: ignore[no-untyped-call]
    assert model.grad is not None
    step = 1e-2
    for place in [(0, 0, 0), (1, 2, 7), (0, 1, V - 1)]:
        moved = torch.zeros_like(model)
        moved[place] = step
        slope = (value(model.detach() + moved) - value(model.detach() - moved)) / (2 * step)
        assert float(model.grad[place]) == pytest.approx(float(slope), abs=2e-3)


def test_a_model_that_is_the_teacher_has_no_distance(logits: tuple[Tensor, Tensor]) -> None:
    teacher, _ = logits
    for classes in (whole_classes(teacher, teacher, 2.0), top_classes(top_tokens(teacher, 3, 2.0), teacher, 2.0)):
        assert forward_kl(classes).abs().max() < 1e-6
        assert reverse_kl(classes).abs().max() < 1e-6


def test_a_certain_teacher_gives_finite_gradients() -> None:
    teacher = torch.full((1, 1, V), -1e4)
    teacher[..., 3] = 1e4
    model = torch.zeros(1, 1, V, requires_grad=True)
    top = top_tokens(teacher, 2, 1.0)
    stored = TopTokens(top.ids, top.log_probs.clamp(min=-6e4).half().float(), top.rest.clamp(min=-6e4).half().float())
    for measure in (forward_kl, reverse_kl):
        loss = measure(top_classes(stored, model, 1.0)).sum()
        (gradient,) = torch.autograd.grad(loss, model)
        assert loss.isfinite()
        assert gradient.isfinite().all()
