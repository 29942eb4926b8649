"""From a checkpoint to a checked, exported model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.file_names import WEIGHTS
from ..runtime.execution.session import Session, usable_cores
from .graph.weights import Precision
from .package import replacing, write_files
from .proof.check import check, only_ties, points
from .proof.skipping import prove
from .source import find, read

PROFILED = 12


@dataclass(frozen=True)
class Exported:
    folder: Path
    report: dict[str, Any]


def run_export(
    name: str | None,
    out: Path | None = None,
    precision: Precision = "fp32",
    *,
    threads: int | None = None,
    checkpoint: str = "last",
    story: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Exports a run or checkpoint (by default the newest run) into the folder `out` (by default `model` in the run).

    `checkpoint` is which one of a run: `best`, `last` (the newest good one), or a step.

    Raises:
        UserError: nothing to export, nowhere to write, or the graph failed its check; then no model is written.
    """
    source = read(find(name, checkpoint))
    target = out or source.checkpoint.run / "model"
    parameters = sum(p.numel() for p in source.model.parameters())
    story(f"exporting {source.checkpoint.path} ({parameters / 1e6:.1f}M parameters) as {precision}")
    with replacing(target) as folder:
        manifest = write_files(source, folder, precision)
        # several threads also for a small model, which would run on one: a race between them must show here
        session = Session(folder, manifest, device="cpu", threads=threads or usable_cores(), verify=False)
        outcome = check(source, session, story)
        thresholds = list(points(source).values())
        profiled = source.heldout_ids(min(PROFILED, source.config.context_length))
        proof = prove(folder, manifest, profiled[0].tolist(), thresholds)
        lines = [*outcome.lines, proof.line(source.config.num_layers)]
        failures = [*outcome.failures, *proof.failures[:1]]
        for line in lines:
            story(f"  {line}")
        report = outcome.report | {"skipping": proof.report()}
        if failures:
            raise UserError(
                f"{_refusal(report)}, so {target} was not written:\n  " + "\n  ".join(failures) + f"\n{_advice(report)}"
            )
        manifest.model_copy(update={"parity": report}).write(folder)
    megabytes = sum(f.bytes for f in manifest.files.values()) / 2**20
    story(f"wrote {target} ({megabytes:.1f} MiB, weights {manifest.files[WEIGHTS].bytes / 2**20:.1f} MiB)")
    story(f'next: adaptive generate "..." --model {target}')
    return Exported(target, report)


def _refusal(report: dict[str, Any]) -> str:
    if not report.get("quantisation", {"passed": True})["passed"]:
        return "int8 changes this model too much"
    if only_ties(report):
        return "too many decisions of this model stand at their thresholds"
    return "the exported graph does not match the model"


def _advice(report: dict[str, Any]) -> str:
    if not report.get("quantisation", {"passed": True})["passed"]:
        return "Train it longer, or export without --quantize"
    if only_ties(report):
        return (
            "Where routers saturate, scores crowd at the thresholds and rounding would decide. Train with a lower "
            "optimizer.adamw_lr, or with higher losses.head_z_loss and losses.router_z_loss"
        )
    return "This is a defect of the export, not of your run; please report it with the lines above"
