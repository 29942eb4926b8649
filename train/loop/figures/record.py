"""The measurements of one step, and its record in metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .evaluate import Evaluation


@dataclass
class StepResult:
    """Means over the scored tokens of one step."""

    parts: dict[str, float] = field(default_factory=dict)
    """The losses by name, and average usage: experts_per_token, layers_per_token and other choices of the model."""
    grad_norm: float = float("nan")
    """Before clipping."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Figures of the layers and routers, with the alarms and acts that follow from them; only in logged steps."""
    problem: str | None = None
    """Why the step was skipped; None if it was taken."""

    @property
    def skipped(self) -> bool:
        """Whether the step was skipped."""
        return self.problem is not None


def scores(evaluation: Evaluation | None) -> dict[str, float]:
    """Return the keys of a record that an evaluation fills."""
    if evaluation is None:
        return {}
    return {
        "val_loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
        **{f"val_{name}": value for name, value in evaluation.usage.items()},
        **{
            f"{key}/{task}": value
            for task, one in evaluation.tasks.items()
            for key, value in scores(one).items()
            if key != "perplexity"
        },
    }


def record_of(step: int, result: StepResult, **measured: Any) -> dict[str, Any]:
    """Return one object of metrics.jsonl; the keys of `measured` follow those that every record has."""
    parts = dict(result.parts)
    total = parts.pop("loss", None)
    cross_entropy = parts.pop("cross_entropy", None)
    record = {
        "step": step,
        "loss": cross_entropy,
        "grad_norm": result.grad_norm,
        "total_loss": total,
        **parts,
        **measured,
        **result.figures,
    }
    if "grad_norm/layers.0" in result.figures:
        record["first_block_grad_norm"] = result.figures["grad_norm/layers.0"]
    return record if result.problem is None else {**record, "skipped": True, "problem": result.problem}
