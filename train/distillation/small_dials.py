"""Small dials that learn from the full one: the loss of early exits, and of a pass at lower thresholds.

B batch, T time, L layers, V vocabulary.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from ..config.distillation import SelfDistillationConfig
from ..model.losses import mean_over
from ..model.output import ModelOutput, ThresholdTensors
from ..model.transformer import Transformer
from .kl import forward_kl, whole_classes
from .lessons import Part


class SmallDials:
    """The losses of `self_distillation`. It has no state to save: a step draws from the seed of the run and its number.

    Source: slimmable networks (Yu and Huang 2019, arXiv 1903.05134), whose smaller networks learn from the largest in
    the same step. Departs from it: a smaller network is a lower threshold, drawn for each mechanism.
    """

    def __init__(self, config: SelfDistillationConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def losses(
        self, model: Transformer, out: ModelOutput, part: Part, *, step: int, recompute: bool
    ) -> dict[str, Tensor]:
        """Return the losses by name, each (), unweighted. The full pass, `out`, gets no gradient as a teacher.

        Args:
            model: The model, in training.
            out: Its output for the sequences.
            part: The sequences.
            step: The number of the step.
            recompute: Whether the backward pass computes most activations again.
        """
        losses, full = {}, out.logits.detach()
        if self.config.exits:
            exits = [self._distance(full, model.logits(hidden), part.scored) for hidden in out.exit_hidden.values()]
            losses["exit_distillation_loss"] = torch.stack(exits).mean()
        if self.config.dials:
            rows, counts = self.chosen(part.windows)
            narrow = model(part.ids[rows], lowered(model.default_thresholds(), self.draw(step)), recompute)
            scored = part.scored[rows] & counts
            losses["dial_distillation_loss"] = self._distance(full[rows], narrow.logits, scored)
        return losses

    def chosen(self, windows: Tensor) -> tuple[Tensor, bool]:
        """Choose the sequences of the second pass by the numbers of their windows, (B,), whatever rank has them.

        Returns:
            Their rows (b,), and whether they count: all ranks run the pass, so one that has none runs its first row.
        """
        share = self.config.sequences
        rows = (((windows + 1) * share).floor() > (windows * share).floor()).nonzero().flatten()
        return (rows, True) if len(rows) else (torch.zeros(1, dtype=torch.int64), False)

    def draw(self, step: int) -> list[float]:
        """Draw a factor for experts, heads, layers and exits, each from `least` to 1; the same on every rank."""
        draws = random.Random(f"{self.seed} {step} dials")
        return [draws.uniform(self.config.least, 1.0) for _ in range(4)]

    @staticmethod
    def _distance(full: Tensor, small: Tensor, scored: Tensor) -> Tensor:
        return mean_over(forward_kl(whole_classes(full, small, 1.0)).flatten(), scored.flatten())


def lowered(thresholds: ThresholdTensors, factors: list[float]) -> ThresholdTensors:
    """Return thresholds at which less runs, without a gradient: at a factor of 1 as given, at 0 the least.

    The mass of experts and heads is multiplied by its factor. A layer runs from a score on that is as much nearer to 1.
    A token leaves at a confidence above its factor.
    """
    experts, heads, layers, exits = factors
    return thresholds._replace(
        router_top_p=thresholds.router_top_p.detach() * experts,
        head_top_p=thresholds.head_top_p.detach() * heads,
        depth_threshold=1 - (1 - thresholds.depth_threshold.detach()) * layers,
        exit_threshold=torch.full_like(thresholds.exit_threshold, exits),
    )
