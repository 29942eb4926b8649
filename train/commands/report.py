"""The report of a training for a terminal. Only click and the standard library are imported at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..loop.figures.evaluate import Evaluation
    from ..results.verdict import Report
    from ..training import Outcome


def report(outcome: Outcome) -> int:
    """Report the outcome on stderr and the run's folder on stdout, and return the exit code."""
    run = outcome.run
    if outcome.evaluation is not None:
        report_evaluation(outcome.evaluation, outcome)
    if outcome.report is not None:
        report_gates(outcome.report)
    if outcome.complete:
        from ..run.checkpoints.best import read_best

        best = read_best(run.path)
        if best is not None and best.step != outcome.step:
            click.echo(
                f"the checkpoint of step {best.step} has a lower loss, {best.val_loss:.4f} over {best.tokens} tokens; "
                f"export that one: adaptive export {run.name} --checkpoint best",
                err=True,
            )
        click.echo(f"next: adaptive export {run.name} --onnx", err=True)
    elif outcome.step:
        click.echo(f"saved at step {outcome.step}; resume with: {run.resume_command}", err=True)
    if outcome.complete or outcome.step:
        click.echo(str(run.path))
    return outcome.exit_code


def report_evaluation(evaluation: Evaluation, outcome: Outcome) -> None:
    """Report the last evaluation in a line."""
    name = "loss on text it was trained on" if outcome.trained_on else "held-out loss"
    usage = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in evaluation.usage.items())
    click.echo(
        f"{name} {evaluation.loss:.4f}, perplexity {evaluation.perplexity:.2f}, bits per byte "
        f"{evaluation.bits_per_byte:.4f}, {usage} (step {outcome.step}, {evaluation.tokens} tokens)",
        err=True,
    )
    for task, one in evaluation.tasks.items():
        click.echo(
            f"  {task}: loss {one.loss:.4f}, bits per byte {one.bits_per_byte:.4f}, experts per token "
            f"{one.experts_per_token:.2f}, layers per token {one.layers_per_token:.2f} ({one.tokens} tokens)",
            err=True,
        )


def report_gates(gates: Report) -> None:
    """Report each gate in a line, and if one failed, which run is still the best."""
    for verdict in gates.verdicts:
        click.echo(str(verdict), err=True)
    if not gates.passed:
        best = f"{gates.best} stays the best" if gates.best else "there is no better run to go back to"
        click.echo(f"gates: {len(gates.failed)} of {len(gates.verdicts)} failed; {best}", err=True)
