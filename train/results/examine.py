"""Holds a run that has come to its end against its gates."""

from __future__ import annotations

from ..loop.evaluate import Evaluation
from ..loop.trainer import Trainer
from ..run.metrics import read_metrics
from .greedy import greedy_answer
from .lineage import rivals, standing
from .summary import newest_state, recent_loss
from .verdict import REPORT, Report, Seen, judge


def examine(loop: Trainer, evaluation: Evaluation) -> Report | None:
    """Judges the trained model by the gates of its config, and writes the report into the run's folder; None on the
    ranks that do not.

    Raises:
        UserError: the report could not be written.
    """
    config, run, gates = loop.config, loop.run, loop.config.gates
    loop.curriculum.rest()
    asked = gates.answer
    answer = None
    if asked is not None:
        answer = greedy_answer(loop.model, loop.corpus.tokenizer, asked.prompt, asked.max_tokens, loop.precision)
    if not loop.world.is_first:  # all ranks are asked, since each may hold a part of the model; the first one judges
        return None
    records = read_metrics(run.path / "metrics.jsonl")
    seen = Seen(
        losses={"held_out": evaluation.loss, "training": recent_loss(records)},
        experts_per_token=evaluation.experts_per_token,
        records=records,
        answer=answer,
        rivals=rivals(run, config),
    )
    for name in seen.rivals or ():
        text = newest_state(run.path.with_name(name)).get("data_digest")
        if text != loop.identity.get("data_digest"):
            loop.display.log(f"note: {name} had another text or tokenizer, so that its loss says little of this one's")
    verdicts = judge(gates, seen)
    best: str | None = run.name
    if not all(each.passed for each in verdicts):
        before = standing(run.path.with_name(config.parent)) if config.parent else None
        best = before.name if before else None
    report = Report(loop.counters.step, config.parent, best, gates.model_dump(mode="json"), verdicts)
    run.write(REPORT, report.to_json() + "\n")
    return report
