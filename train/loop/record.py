"""Where a run stands, what one step measured, and how that is written down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .evaluate import Evaluation


@dataclass
class StepResult:
    """Means over the scored tokens of one step."""

    parts: dict[str, float] = field(default_factory=dict)
    """The named losses, and the averages used: experts_per_token, layers_per_token and what else the model chooses."""
    grad_norm: float = float("nan")
    """Before clipping."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Of the layers and routers, and the alarms and acts that follow from them; in the steps that are logged."""
    problem: str | None = None
    """Why the step was skipped; None if it was taken."""

    @property
    def skipped(self) -> bool:
        return self.problem is not None


def scores(found: Evaluation | None) -> dict[str, float]:
    """The keys of a record that an evaluation fills."""
    if found is None:
        return {}
    return {
        "val_loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        **{f"val_{name}": value for name, value in found.usage.items()},
    }


def record_of(step: int, result: StepResult, **measured: Any) -> dict[str, Any]:
    """One object of metrics.jsonl; what `measured` holds comes after what it always has."""
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
