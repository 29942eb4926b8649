"""Layer scaling: the layer of a weight, and the factor that a gradient norm gives its rate."""

import math

import pytest
import torch
from torch import nn

from adaptive_lm.train.optim.layer_scaling import factors, layer_norms, layer_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layers.11.moe.gate_up", "layers.11"),
        ("layers.1.attention_norm.weight", "layers.1"),
        ("embedding.weight", "embedding"),
        ("head.weight", "head"),
        ("norm.weight", "rest"),
        ("exit_routers.2.weight", "rest"),
    ],
)
def test_the_layer_of_a_weight(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_the_norm_of_a_layer_is_that_of_all_its_gradients_together() -> None:
    weights = {name: nn.Parameter(torch.zeros(2)) for name in ("layers.0.a", "layers.0.b", "layers.1.a", "norm.weight")}
    for weight, value in zip(weights.values(), (3.0, 4.0, 1.0, 0.0), strict=True):
        weight.grad = torch.tensor([value, 0.0])
    weights["norm.weight"].grad = None
    norms = layer_norms(weights.items())
    assert {layer: float(norm) for layer, norm in norms.items()} == {"layers.0": 5.0, "layers.1": 1.0}


@pytest.mark.parametrize(
    ("norm", "factor"),
    [(3.0, 1.0), (12.0, 0.5), (0.75, 2.0), (1e-9, 3.0), (0.0, 3.0), (1e9, 0.3), (3.0 / 0.09, 0.3), (1 / 3, 3.0)],
)
def test_the_factor_is_the_root_of_the_ratio_between_its_bounds(norm: float, factor: float) -> None:
    (actual,) = factors({"head": torch.tensor(norm)}, 3.0).values()
    assert actual == pytest.approx(factor, rel=1e-5)


def test_another_target_moves_the_factors_by_its_root() -> None:
    norms = {"layers.0": torch.tensor(2.0), "layers.1": torch.tensor(5.0)}
    one, four = factors(norms, 2.0), factors(norms, 8.0)
    assert all(math.isclose(four[layer], 2 * one[layer], rel_tol=1e-6) for layer in norms)
