"""Export a checkpoint as a checked ONNX model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.file_names import WEIGHTS
from ..runtime.execution.session import Session, usable_cores
from ..runtime.format.manifest import KV, Precisions
from .graph.weights import FP32
from .package import replacing, write_files
from .proof.check import check, only_ties, points
from .proof.skipping import prove
from .source import find, read

PROFILED = 12
"""Number of decoded tokens whose profile must show that skipped work was not executed."""


@dataclass(frozen=True)
class Exported:
    """An exported model that passed its check."""

    folder: Path
    """The folder that it was written to."""
    report: dict[str, Any]
    """The report of the check, as the manifest holds it under `parity`."""


def run_export(
    name: str | None,
    out: Path | None = None,
    precisions: Precisions = FP32,
    *,
    targets: Sequence[str] = ("cpu",),
    kv: KV = "fp32",
    threads: int | None = None,
    checkpoint: str = "last",
    log: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Export a run or a checkpoint.

    Args:
        name: Name or path of a run, or path of a checkpoint; None takes the newest run.
        out: Folder to write; None takes the folder `model` in the run.
        precisions: Precision of each part.
        targets: Graphs to write besides the portable one.
        kv: Precision of the cache in the graph of the target `cpu`.
        threads: Threads for the check; None takes one per core.
        checkpoint: Which checkpoint of a run: `best`, `last` (the newest undamaged one), or a step.
        log: Called with each line for the user.

    Raises:
        UserError: There is nothing to export, the folder cannot be written, or the graph failed its check. No model is
            written then.
    """
    source = read(find(name, checkpoint))
    target = out or source.checkpoint.run / "model"
    parameters = sum(p.numel() for p in source.model.parameters())
    log(f"exporting {source.checkpoint.path} ({parameters / 1e6:.1f}M parameters) as {precisions.narrowest}")
    with replacing(target) as folder:
        manifest = write_files(source, folder, precisions, targets, kv)
        # several threads, although a small model runs on one: the check must notice a race between threads
        session = Session(folder, manifest, device="cpu", threads=threads or usable_cores(), verify=False)
        outcome = check(source, session, log)
        thresholds = list(points(source).values())
        profiled = source.heldout_ids(min(PROFILED, source.config.context_length))
        proof = prove(folder, manifest, profiled[0].tolist(), thresholds)
        lines = [*outcome.lines, proof.line(source.config.num_layers)]
        failures = [*outcome.failures, *proof.failures[:1]]
        for line in lines:
            log(f"  {line}")
        report = outcome.report | {"skipping": proof.report()}
        if failures:
            raise UserError(
                f"{_refusal(report)}, so {target} was not written:\n  " + "\n  ".join(failures) + f"\n{_advice(report)}"
            )
        manifest.model_copy(update={"parity": report}).write(folder)
    megabytes = sum(f.bytes for f in manifest.files.values()) / 2**20
    log(f"wrote {target} ({megabytes:.1f} MiB, weights {manifest.files[WEIGHTS].bytes / 2**20:.1f} MiB)")
    log(f'next: adaptive generate "..." --model {target}')
    return Exported(target, report)


def _refusal(report: dict[str, Any]) -> str:
    if not report.get("quantisation", {"passed": True})["passed"]:
        return "int8 changes this model too much"
    if only_ties(report):
        return "too many routing scores of this model are within rounding error of their thresholds"
    return "the exported graph does not match the model"


def _advice(report: dict[str, Any]) -> str:
    if not report.get("quantisation", {"passed": True})["passed"]:
        return "Train it longer, or export without --quantize"
    if only_ties(report):
        return (
            "The routers have saturated: their scores crowd at the thresholds, where rounding would decide. Train with "
            "a lower optimizer.adamw_lr, or with higher losses.head_z_loss and losses.router_z_loss"
        )
    return "This is a fault in the export, not in your run; please report it with the lines above"
