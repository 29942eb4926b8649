"""Export a checkpoint as a checked ONNX model."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..runtime.execution.session import Session, usable_cores
from ..runtime.format.manifest import KV, Manifest, Precisions
from ..runtime.ops.library import NoLibraryError, load_library
from ..train.run.find import find
from .calibration import calibrate
from .folder import replacing
from .graph.weights import FP32
from .package import write_files
from .proof.bytes_read import prove_bytes
from .proof.check import check, only_ties
from .proof.judge import Judge
from .proof.skipping import prove
from .source import Source, read
from .summary import executors, quantisation_table, sizes

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
    calibrate_text: Path | None = None,
    threads: int | None = None,
    checkpoint: str = "last",
    embeddings: bool = False,
    task: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Export a run or a checkpoint.

    Args:
        name: Name or path of a run, or path of a checkpoint; None takes the newest run.
        out: Folder to write; None takes the folder `model` in the run.
        precisions: Precision of each part.
        targets: Graphs to write besides the portable one.
        kv: Precision of the cache in the graph of the target `cpu`.
        calibrate_text: A text by which the scales of int8 and int4 are chosen; None takes the ranges of the weights.
        threads: Threads for the check; None takes one per core.
        checkpoint: Which checkpoint of a run: `best`, `last` (the newest undamaged one), or a step.
        embeddings: Whether the graphs also give the hidden states, so that the model can embed texts.
        task: The task whose gates the model gets, if it has gates per task.
        log: Called with each line for the user.

    Raises:
        UserError: There is nothing to export, the folder cannot be written, or the graph failed its check. No model is
            written then.
    """
    require_fitting_targets(precisions, targets)
    source = read(find(name, checkpoint), task)
    require_fitting(source, precisions)
    target = out or source.checkpoint.run / "model"
    parameters = sum(p.numel() for p in source.model.parameters())  # a tied matrix once
    log(f"exporting {source.checkpoint.path} ({parameters / 1e6:.1f}M parameters) as {precisions.narrowest}")
    calibration = calibrate(source, calibrate_text, precisions) if calibrate_text else None
    for line in calibration.lines() if calibration else ():
        log(f"  {line}")
    scales = calibration.scales if calibration else {}
    with replacing(target) as folder:
        manifest = write_files(source, folder, precisions, targets, kv, scales, log, hidden=embeddings)
        report, failures = _check(Judge(source, scales, folder), folder, manifest, threads or usable_cores(), log)
        if calibration:
            report["calibration"] = calibration.report()
        if failures:
            raise UserError(
                f"{_refusal(report, manifest)}, so {target} was not written:\n  "
                + "\n  ".join(failures)
                + f"\n{_advice(report)}"
            )
        manifest.model_copy(update={"parity": report}).write(folder)
    for line in quantisation_table(manifest, sum(value.nbytes for value in source.weights().values()), report):
        log(f"  {line}")
    for name, one in manifest.targets.items():
        log(f"target {name}: {executors(one)}")
    log(f"wrote {target} ({', '.join(f'{name} {size / 2**20:.1f} MiB' for name, size in sizes(manifest).items())})")
    log(f'next: adaptive generate "..." --model {target}')
    return Exported(target, report)


def require_fitting_targets(precisions: Precisions, targets: Sequence[str]) -> None:
    """Refuse a precision in which a target cannot compute.

    Raises:
        UserError: fp16 without the target `cuda` or with `cpu`, or int8 or int4 with `cuda`.
    """
    chosen = set(precisions.model_dump().values())
    if "fp16" in chosen and ("cuda" not in targets or "cpu" in targets):
        raise UserError(
            f"fp16 is for the target cuda, found the targets {', '.join(['portable', *targets])}; give --target cuda "
            "without --target cpu, or use --quantize bf16"
        )
    integers = sorted(chosen & {"int8", "int4"})
    if integers and "cuda" in targets:
        raise UserError(
            f"the target cuda has fp32, bf16 and fp16, found {integers[0]}; use --quantize fp16, or leave "
            "--target cuda out"
        )


def require_fitting(source: Source, precisions: Precisions) -> None:
    """Refuse two precisions for a matrix that is both embedding and output head.

    Raises:
        UserError: They differ, and the model ties the two.
    """
    if source.config.tie_embeddings and precisions.embedding != precisions.head:
        raise UserError(
            "embedding and output head are one matrix in this model (tie_embeddings), found "
            f"{precisions.embedding} and {precisions.head}; give both one precision: "
            f"--quantize embedding={precisions.head} --quantize head={precisions.head}"
        )


def _check(
    judge: Judge, folder: Path, manifest: Manifest, threads: int, log: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:
    """Check the graph of every target; return the report and the failures."""
    source = judge.source
    thresholds = list(judge.points.values())
    profiled = source.heldout_ids(min(PROFILED, source.config.context_length))[0].tolist()

    def open_session(target: str) -> Session:
        # several threads, although a small model runs on one: the check must notice a race between threads
        return Session(folder, manifest, device="cpu", target=target, threads=threads, verify=False)

    outcome = check(source, open_session("portable"), log, judge)
    gc.collect()  # sessions are in reference cycles, and one holds a copy of its matrices
    proof = prove(folder, manifest, profiled, thresholds)
    gc.collect()
    report = outcome.report | {"skipping": proof.report()}
    lines, failures = [*outcome.lines, proof.line(source.config.num_layers)], [*outcome.failures, *proof.failures[:1]]
    for line in lines:
        log(f"  {line}")
    targets: dict[str, Any] = {}
    if "cpu" in manifest.targets:
        try:
            library = load_library()
        except NoLibraryError as reason:
            log(f"  the graph of the target cpu was written, but not checked here: {reason}")
            targets["cpu"] = {"checked": False, "reason": str(reason)}
        else:
            session = open_session("cpu")
            own = check(source, session, log, judge, outcome.passes)
            read = prove_bytes(session, library, source.config, profiled, thresholds)
            for line in [*own.lines, read.line()]:
                log(f"  {line}")
            targets["cpu"] = own.report | {"checked": True, "kernel": library.kernel, "skipping": read.report()}
            failures += [*own.failures, *read.failures[:1]]
            del session
            gc.collect()
    if "cuda" in manifest.targets:  # ONNX Runtime has all of its operators for the CPU too
        own = check(source, open_session("cuda"), log, judge, outcome.passes)
        for line in own.lines:
            log(f"  {line}")
        targets["cuda"] = own.report | {"checked": True, "kernel": None, "device": "cpu"}
        failures += own.failures
    return (report | {"targets": targets} if targets else report), failures


def _parts(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the report of each target that was checked."""
    return [report, *(part for part in report.get("targets", {}).values() if part["checked"])]


def _too_coarse(report: dict[str, Any]) -> bool:
    return any(not part.get("quantisation", {"passed": True})["passed"] for part in _parts(report))


def _refusal(report: dict[str, Any], manifest: Manifest) -> str:
    if _too_coarse(report):
        return f"{manifest.model.precision} changes this model too much"
    if only_ties(_parts(report)):
        return "too many routing scores of this model are within rounding error of their thresholds"
    return "the exported graph does not match the model"


def _advice(report: dict[str, Any]) -> str:
    if _too_coarse(report):
        return "Train it longer, or export without --quantize"
    if only_ties(_parts(report)):
        return (
            "The routers have saturated: their scores crowd at the thresholds, where rounding would decide. Train with "
            "a lower optimizer.adamw_lr, or with higher losses.head_z_loss and losses.router_z_loss"
        )
    return "This is a fault in the export, not in your run; please report it with the lines above"
