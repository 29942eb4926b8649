"""LARS against its formula."""

import torch
from torch import nn

from adaptive_lm.train.optim.lars import LARS


def moved(weight: torch.Tensor, gradients: list[torch.Tensor], **options: float) -> torch.Tensor:
    """Return a weight after steps with these gradients."""
    parameter = nn.Parameter(weight.clone())
    optimizer = LARS([parameter], **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def by_hand(
    w: torch.Tensor, gradients: list[torch.Tensor], lr: float, weight_decay: float, momentum: float
) -> torch.Tensor:
    """You et al. 2017, algorithm 1, for one matrix, with the decay outside of the ratio."""
    v = torch.zeros_like(w)
    for g in gradients:
        v = momentum * v + lr * w.norm() / g.norm() * g
        w = w - lr * weight_decay * w - v
    return w


def test_a_matrix_moves_as_the_paper_says() -> None:
    torch.manual_seed(0)
    weight, gradients = torch.randn(6, 4), [torch.randn(6, 4) * size for size in (1, 100, 1e-4)]
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    torch.testing.assert_close(moved(weight, gradients, **options), by_hand(weight, gradients, **options))


def test_each_expert_of_a_stack_moves_as_a_matrix_alone() -> None:
    torch.manual_seed(1)
    stack = torch.randn(3, 6, 4) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    gradients = [torch.randn(3, 6, 4) for _ in range(3)]
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    alone = [by_hand(stack[e], [g[e] for g in gradients], **options) for e in range(3)]
    torch.testing.assert_close(moved(stack, gradients, **options), torch.stack(alone))


def test_an_expert_that_no_token_used_stays_where_it_is() -> None:
    stack, gradient = torch.ones(2, 3, 3), torch.ones(2, 3, 3)
    gradient[1] = 0
    after = moved(stack, [gradient], lr=0.1, momentum=0.9)
    assert torch.equal(after[1], stack[1])
    assert not torch.equal(after[0], stack[0])


def test_a_step_does_not_depend_on_the_size_of_the_gradient() -> None:
    torch.manual_seed(2)
    weight, gradient = torch.randn(5, 5), torch.randn(5, 5)
    one, other = (moved(weight, [gradient * size], lr=0.01, weight_decay=0.0) for size in (1e-3, 1e3))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
