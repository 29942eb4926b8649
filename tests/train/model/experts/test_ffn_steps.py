"""Training steps of models with other forms of the feed-forward part."""

import pytest
import torch
from support.models import CONFIGS, B, T, tiny_ids

from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.config.loss import LossConfig
from adaptive_lm.train.model.losses import training_loss
from adaptive_lm.train.optim.optimizer import Optimizers, split_parameters
from adaptive_lm.train.optim.optimizer_config import OptimizerConfig


@pytest.mark.parametrize("name", ["everything_capped", "relu_experts", "gated_shared", "dense_bias_gelu"])
def test_a_few_steps_train_every_weight_and_lower_the_loss(name: str) -> None:
    """Muon has the matrices and stacks; biases, routers and gates go with AdamW, and no step moves a selection bias."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    model = Transformer(config).train()
    matrices, rest = split_parameters(dict(model.named_parameters()))
    assert not [key for key in matrices if key.endswith("bias") or "router" in key or "shared_gate" in key]
    assert all(key.endswith((".weight", "gate_up", "up", "down")) for key in matrices)
    assert len(matrices) + len(rest) == len(list(model.parameters()))
    optimizers = Optimizers(model, OptimizerConfig())
    ids, targets, counted = tiny_ids(), tiny_ids(1), torch.ones(B, T, dtype=torch.bool)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    losses = []
    for _ in range(6):
        loss, _ = training_loss(model, model(ids), targets, counted, LossConfig())
        loss.backward()
        optimizers.step()
        optimizers.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    idle = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    assert all("exit" in key or "level_logit" in key for key in idle), idle
