"""The curriculum of a run: how sparse and how deep the model is at each step, and which exits count."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..config.run_config import RunConfig
from ..model.config.loss import LossConfig
from ..model.losses import exit_weights_at, training_loss
from ..model.output import ModelOutput
from ..model.routing.depth import layer_dropout_rate
from ..model.transformer import Transformer
from ..optim.schedule import drawn_sparsity


class Curriculum:
    """Sets the model before each step by the progress of the run.

    It has no state to save: in a resumed run it sets the model as in a run without a stop.
    """

    def __init__(self, config: RunConfig, model: Transformer) -> None:
        """Set up the curriculum of `model`."""
        self.config, self.model = config, model
        self.record: dict[str, Any] = {}
        """The settings in force, under the names of metrics.jsonl; only those that the config changes in the run."""
        self.losses = config.losses
        self._text_weight = 1.0 if config.distillation is None else 1 - config.distillation.weight
        self._exit_weights: dict[int, float] | None = None
        self._moves_exits = self.config.losses.exit_curriculum != "all"

    def apply(self, step: int, done: float, losses: LossConfig | None = None) -> None:
        """Set the model for one step.

        Args:
            step: The number of the step (0, 1, ...).
            done: The progress of the run, 0..1.
            losses: Weights of the losses in place of those of the config.
        """
        self.losses = losses or self.config.losses
        config, depth = self.config, self.config.model.depth
        self.record = {}
        if config.schedule.moves_sparsity:
            sparsity = drawn_sparsity(config.schedule, done, config.trainer.seed, step)
            self.model.set_sparsity(sparsity)
            self.record["sparsity"] = sparsity
        if depth.layer_dropout:
            rate = layer_dropout_rate(depth, done)
            self.model.set_layer_dropout(rate)
            self.record["layer_dropout"] = rate
        if depth.exit_layers:
            self._exit_weights = exit_weights_at(config.losses, depth.exit_layers, step, done)
            if self._moves_exits:
                self.record |= {f"exit_weight.{layer}": weight for layer, weight in self._exit_weights.items()}

    def loss(
        self, out: ModelOutput, targets: Tensor, scored: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch with the settings in force; targets and scored (B, T), weights (B,) of tasks."""
        return training_loss(
            self.model,
            out,
            targets,
            scored,
            self.losses,
            exit_weights=self._exit_weights,
            task_weights=weights,
            text_weight=self._text_weight,
        )

    def rest(self) -> None:
        """Set the model as it is evaluated and exported: as in the config, with nothing scheduled and nothing drawn."""
        self.model.set_sparsity(1.0)
