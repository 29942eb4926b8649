"""Muon against torch's own, and the state of the optimizers as named tensors."""

import pytest
import torch
from torch import nn

from adaptive_lm.train.errors import UserError
from adaptive_lm.train.model.config import ModelConfig
from adaptive_lm.train.model.transformer import Transformer
from adaptive_lm.train.optimizer import Muon, OptimizerConfig, Optimizers, orthogonalize, split_parameters

TINY = {
    "vocab_size": 11, "context_length": 16, "dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
    "ffn": {"num_experts": 4, "expert_dim": 24},
}  # fmt: skip


def weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    torch.manual_seed(3)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for weight in parameters:
        weight.grad = torch.randn_like(weight)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)], ids=["square", "tall", "wide"])
def test_muon_moves_a_matrix_as_torch_does(shape: tuple[int, int]) -> None:
    ours, theirs = weights(shape, shape), weights(shape, shape)
    mine, judge = Muon(ours, 0.02, 0.1, 0.95), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95)
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        mine.step()
        judge.step()
    for one, other in zip(ours, theirs, strict=True):
        # Both orthogonalise in bfloat16 (2^-8); three steps of 0.02 with entries of size 1/4.
        torch.testing.assert_close(one, other, rtol=0, atol=5e-4)


@pytest.mark.parametrize("shape", [(4, 16, 48), (4, 48, 16)], ids=["gate_up", "down"])
def test_muon_moves_a_stack_of_experts_as_each_matrix_alone(shape: tuple[int, int, int]) -> None:
    (stack,) = weights(shape)
    alone = [nn.Parameter(matrix.t().clone()) for matrix in stack.detach()]  # (out, in), as nn.Linear has it
    give_gradients([stack], 5)
    assert stack.grad is not None
    for matrix, gradient in zip(alone, stack.grad, strict=True):
        matrix.grad = gradient.t().clone()
    Muon([stack], 0.02, 0.1).step()
    torch.optim.Muon(alone, lr=0.02, weight_decay=0.1).step()
    torch.testing.assert_close(stack.detach(), torch.stack([m.detach().t() for m in alone]), rtol=0, atol=5e-4)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    found = torch.linalg.svdvals(orthogonalize(torch.randn(3, 16, 40).bfloat16()).float())
    assert found.min() > 0.6
    assert found.max() < 1.25


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_everything_else() -> None:
    model = Transformer(ModelConfig.model_validate(TINY))
    matrices, rest = split_parameters(model)
    assert {"layers.0.moe.gate_up", "layers.1.moe.down", "layers.0.attention.o.weight"} <= set(matrices)
    assert {"embedding.weight", "head.weight", "norm.weight", "layers.0.moe.router.weight"} <= set(rest)
    assert not any("router" in name or "norm" in name for name in matrices)
    assert len(matrices) + len(rest) == len(list(model.parameters()))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_optimizers_restored_from_their_tensors_take_the_same_next_step(kind: str) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.model_validate(TINY))
    twin = Transformer(ModelConfig.model_validate(TINY))
    config = OptimizerConfig.model_validate({"kind": kind})
    first = Optimizers(model, config)
    give_gradients(list(model.parameters()), 1)
    first.step()
    second = Optimizers(twin, config)
    twin.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    second.load_state_tensors({name: value.clone() for name, value in first.state_tensors().items()})
    for each, optimizers in ((model, first), (twin, second)):
        give_gradients(list(each.parameters()), 2)
        optimizers.step()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_state_of_another_model_is_refused() -> None:
    optimizers = Optimizers(Transformer(ModelConfig.model_validate(TINY)), OptimizerConfig())
    with pytest.raises(UserError, match=r"layers\.9\.moe\.down"):
        optimizers.load_state_tensors({"layers.9.moe.down.momentum_buffer": torch.zeros(1)})


def test_every_learning_rate_is_its_peak_times_the_factor() -> None:
    optimizers = Optimizers(Transformer(ModelConfig.model_validate(TINY)), OptimizerConfig(lr=0.02, adamw_lr=0.004))
    optimizers.set_rate(0.5)
    optimizers.set_rate(0.25)
    assert sorted(g["lr"] for one in optimizers.all for g in one.param_groups) == pytest.approx([0.001, 0.005])


def test_adamw_alone_has_another_rate_and_decay_for_the_matrices() -> None:
    config = OptimizerConfig(kind="adamw", adamw_lr=0.01, adamw_matrix_lr=0.002, weight_decay=0.3)
    (one,) = Optimizers(Transformer(ModelConfig.model_validate(TINY)), config).all
    assert [(g["lr"], g["weight_decay"]) for g in one.param_groups] == [(0.01, 0.0), (0.002, 0.3)]
