"""The losses of distillation in a step: those of a teacher, and those of the model's own small dials."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..config.run_config import RunConfig
from ..model.losses import mean_over
from ..model.output import ModelOutput
from ..model.transformer import Transformer
from .hidden_states import PREFIX, Projections
from .kl import divergence
from .lessons import Lessons, LiveLessons, Part
from .small_dials import SmallDials


class Distiller:
    """Adds the losses of distillation to that of the text; does nothing where the config asks for none."""

    def __init__(self, config: RunConfig, lessons: Lessons | None, device: torch.device) -> None:
        """Set up the losses.

        Args:
            config: The config of the run.
            lessons: The outputs of its teacher; None without one.
            device: Where the model computes.
        """
        self.config, self.lessons = config, lessons
        own, teacher = config.self_distillation, config.distillation
        self.dials = None if own is None else SmallDials(own, config.trainer.seed)
        self.projections = None
        if teacher is not None and teacher.hidden_layers:
            assert isinstance(lessons, LiveLessons)  # the config requires it
            self.projections = Projections(
                teacher.hidden_layers, (config.model.dim, lessons.teacher.source.model.dim),
                lr=config.optimizer.adamw_matrix_lr, seed=config.trainer.seed, device=device,
            )  # fmt: skip

    @property
    def state_layers(self) -> tuple[int, ...]:
        """The layers of the model after which the losses need its state."""
        return () if self.projections is None else self.projections.layers

    def loss(
        self, model: Transformer, out: ModelOutput, part: Part, step: int
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the loss to add, (), and its parts by name, unweighted and detached; None where there is none."""
        parts: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        if self.lessons is not None:
            self._from_teacher(out, part, parts, weighted)
        own = self.config.self_distillation
        if self.dials is not None and own is not None:
            losses = self.dials.losses(
                model, out, part, step=step, recompute=self.config.trainer.checkpoint_activations
            )
            strengths = {"exit_distillation_loss": own.exits, "dial_distillation_loss": own.dials}
            weighted += [strengths[name] * loss for name, loss in losses.items()]
            parts |= losses
        total = torch.stack(weighted).sum() if weighted else None
        return total, {name: value.detach() for name, value in parts.items()}

    def _from_teacher(self, out: ModelOutput, part: Part, parts: dict[str, Tensor], weighted: list[Tensor]) -> None:
        config = self.config.distillation
        assert config is not None
        assert self.lessons is not None
        lesson = self.lessons.lesson(part)
        counted = part.scored.flatten()
        distances = divergence(config.divergence, lesson.classes(out.logits), config.reverse_share)  # (B, T)
        parts["distillation_loss"] = mean_over(distances.flatten(), counted)
        weighted.append(config.weight * config.temperature**2 * parts["distillation_loss"])
        parts["teacher_loss"] = mean_over(lesson.loss.flatten(), counted)
        agrees = (out.logits.detach().argmax(-1) == lesson.choice).float()
        parts["teacher_agreement"] = mean_over(agrees.flatten(), counted)
        if self.projections is not None:
            parts["hidden_loss"] = self.projections.loss(out.layer_states, lesson.layer_states, part.scored)
            weighted.append(config.hidden_weight * parts["hidden_loss"])

    # --- what is trained beside the model

    def step(self, rate: float) -> None:
        """Train what is learned beside the model, at `rate` (0..1) of its learning rate."""
        if self.projections is not None:
            self.projections.step(rate)

    def zero_grad(self) -> None:
        """Drop the gradients of what is learned beside the model."""
        if self.projections is not None:
            self.projections.zero_grad()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds besides the model and its optimizers."""
        return {} if self.projections is None else self.projections.state_tensors()

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore it from the tensors of a checkpoint."""
        if self.projections is not None:
            self.projections.load_state_tensors(tensors)


def is_of_distiller(name: str) -> bool:
    """Return whether a tensor of a checkpoint belongs to the distiller."""
    return name.startswith(PREFIX)
