"""The examination of a run at its end, by its gates."""

from __future__ import annotations

from ..loop.figures.evaluate import Evaluation
from ..loop.trainer import Trainer
from ..run.metrics import read_metrics
from .greedy import greedy_answer
from .lineage import baselines, best_in_lineage
from .summary import newest_state, recent_loss
from .verdict import REPORT, Measurements, Report, judge


def examine(loop: Trainer, evaluation: Evaluation) -> Report | None:
    """Judge the trained model by the gates of its config, and write the report into the run's folder.

    Args:
        loop: The trainer of the run.
        evaluation: That of the end of the run.

    Returns:
        The report; None on all ranks but the first.

    Raises:
        UserError: The report could not be written.
    """
    config, run, gates = loop.config, loop.run, loop.config.gates
    loop.curriculum.rest()
    gate = gates.answer
    answer = None
    if gate is not None:
        answer = greedy_answer(
            loop.model, loop.corpus.tokenizer, gate.prompt, gate.max_tokens, loop.precision, loop.corpus.eos_id
        )
    if not loop.world.is_first:  # every rank computes the answer, since each may have a part of the model
        return None
    records = read_metrics(run.path / "metrics.jsonl")
    measured = Measurements(
        losses={"held_out": evaluation.loss, "training": recent_loss(records)},
        experts_per_token=evaluation.experts_per_token,
        records=records,
        answer=answer,
        baselines=baselines(run, config),
    )
    for name in measured.baselines or ():
        text = newest_state(run.path.with_name(name)).get("data_digest")
        if text != loop.identity.get("data_digest"):
            loop.display.log(f"note: {name} had another text or tokenizer; its loss cannot be compared with this one's")
    verdicts = judge(gates, measured)
    best: str | None = run.name
    if not all(each.passed for each in verdicts):
        before = best_in_lineage(run.path.with_name(config.parent)) if config.parent else None
        best = before.name if before else None
    report = Report(loop.counters.step, config.parent, best, gates.model_dump(mode="json"), verdicts)
    run.write(REPORT, report.to_json() + "\n")
    return report
