"""The three ways to clip a gradient."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adaptive_lm.train.optim.clipping import Clipping, clip_rows
from adaptive_lm.train.optim.optimizer import OptimizerConfig


def clipping(*history: float, **config: Any) -> Clipping:
    return Clipping(OptimizerConfig.model_validate(config), history)


def one_weight(*gradient: float) -> list[tuple[str, nn.Parameter]]:
    weight = nn.Parameter(torch.ones(len(gradient)))
    weight.grad = torch.tensor(gradient)
    return [("layers.0.weight", weight)]


def gradient_of(weights: list[tuple[str, nn.Parameter]]) -> torch.Tensor:
    (_, weight), *_ = weights
    assert weight.grad is not None
    return weight.grad


def test_norm_shortens_what_is_too_long_and_nothing_else() -> None:
    weights = one_weight(3.0, 4.0)
    assert clipping(clip_norm=1.0).clip(weights) == pytest.approx(5.0)
    torch.testing.assert_close(gradient_of(weights), torch.tensor([0.6, 0.8]))
    assert clipping(clip_norm=2.0).clip(weights) == pytest.approx(1.0)
    torch.testing.assert_close(gradient_of(weights), torch.tensor([0.6, 0.8]))


def test_percentile_clips_to_what_was_usual_lately() -> None:
    """AutoClip: the percentile of the norms seen, this one included."""
    history = [1.0, 2.0, 3.0, 4.0, 50.0]
    one = clipping(*history, clip="percentile", clip_percentile=40)
    weights = one_weight(30.0, 40.0)
    assert one.clip(weights) == pytest.approx(50.0)
    assert float(gradient_of(weights).norm()) == pytest.approx(float(np.percentile([*history, 50.0], 40)), rel=1e-4)


def test_percentile_never_clips_the_first_step_and_forgets_all_but_its_window() -> None:
    one = clipping(clip="percentile", clip_window=3)
    weights = one_weight(3.0, 4.0)
    one.clip(weights)
    torch.testing.assert_close(gradient_of(weights), torch.tensor([3.0, 4.0]))
    assert list(one.history) == []  # a step that was not taken is not usual
    for norm in (1.0, 2.0, 3.0, 4.0):
        one.accept(norm)
    assert list(one.history) == [2.0, 3.0, 4.0]


def test_only_the_percentile_remembers() -> None:
    one = clipping(clip_norm=1.0)
    one.accept(2.0)
    assert list(one.history) == []


@pytest.mark.parametrize("clip", ["norm", "percentile", "agc"])
def test_a_gradient_that_is_not_finite_is_left_for_the_guard(clip: str) -> None:
    weights = one_weight(math.inf, 1.0)
    assert clipping(1.0, clip=clip).clip(weights) == math.inf
    assert gradient_of(weights).tolist() == [math.inf, 1.0]


@pytest.mark.parametrize("shape", [(5, 7), (3, 7, 5)], ids=["rows", "columns of each expert"])
def test_agc_holds_each_output_to_a_share_of_its_weights(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape) * torch.logspace(-5, 1, shape[0]).view(-1, *[1] * (len(shape) - 1)))
    before = torch.randn(shape) * 0.1
    weight.grad = before.clone()
    clip_rows(weight, 0.05)
    lengths = weight.detach().norm(dim=1).clamp(min=1e-3)  # inputs stand second, in (out, in) as in (E, in, out)
    torch.testing.assert_close(weight.grad.norm(dim=1), torch.minimum(before.norm(dim=1), 0.05 * lengths))
    kept = before.norm(dim=1) <= 0.05 * lengths
    assert kept.any()
    assert not kept.all()


def test_agc_leaves_the_head_alone_and_logs_the_whole_norm() -> None:
    weights = [(name, nn.Parameter(torch.ones(2, 2))) for name in ("head.weight", "layers.0.attention.q.weight")]
    for _, weight in weights:
        weight.grad = torch.ones(2, 2)
    assert clipping(clip="agc", clip_share=0.1).clip(weights) == pytest.approx(8**0.5)
    (_, head), (_, inner) = weights
    assert head.grad is not None
    assert torch.equal(head.grad, torch.ones(2, 2))
    torch.testing.assert_close(inner.grad, torch.full((2, 2), 0.1))
