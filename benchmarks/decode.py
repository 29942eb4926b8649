"""Decoding speed beside peers on the same weights: our targets, llama.cpp, ONNX Runtime GenAI and transformers.

    python benchmarks/decode.py --quick

Peers that are not installed are left out, with a line that says how to install them. Each cell (model, precision,
threads) runs in a process of its own, in which everyone is open and takes turns (decoding/race.py). Memory and loading
are measured in processes of their own. A whole run replaces the section of docs/benchmarks.md and its plot; a quick or
partial one only prints.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, get_args

import click

from adaptive_lm.runtime.execution.session import usable_cores
from adaptive_lm.runtime.measuring.machine import cpu_name
from decoding.participants import missing
from decoding.race import Spec
from decoding.report import draw, markdown
from models.random_weights import SIZES, Precision
from page.section import replace_section

ROOT = Path(__file__).parent.parent
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TRANSFORMERS_VERBOSITY": "error",
}
DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime", "llama-cpp-python", "onnxruntime-genai", "transformers", "torch")
Result = dict[str, Any]


@click.command()
@click.option("--quick", is_flag=True, help="Only moe-57m and one thread, in fewer rounds: a few minutes.")
@click.option("--only", multiple=True, metavar="CELL", help="Only these cells, as MODEL, MODEL/PRECISION or "
              "MODEL/PRECISION/THREADS; may be repeated.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(2, 24), default=12, show_default=True, help="Rounds of turns.")
@click.option("--core", type=click.IntRange(min=0), help="Core to pin the cells of one thread to; by default none.")
@click.option("--resume", is_flag=True, help="Keep the cells that an interrupted run has finished.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "runs" / "bench-decode",
              help="Folder for models and results; by default runs/bench-decode.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write all figures.")
def main(
    quick: bool, only: tuple[str, ...], rounds: int, core: int | None, resume: bool, work: Path, json_file: Path | None
) -> None:
    """Time everyone on every model, and print the tables."""
    for peer, command in missing().items():
        click.echo(f"{peer} is not installed, so it is left out; to include it, type: {command}", err=True)
    work = work.resolve()
    cells = [spec for spec in _specs(work, quick, rounds, core) if _wanted(spec, only)]
    if not cells:
        names = ", ".join(sorted({_name(spec) for spec in _specs(work, quick, rounds, core)}))
        raise click.UsageError(f"no cell fits --only {' '.join(only)}; expected one of {names}")
    results: list[Result] = []
    exported: set[tuple[str, Precision]] = set()
    for number, spec in enumerate(cells, 1):
        click.echo(f"cell {number} of {len(cells)}: {_name(spec)}", err=True)
        saved = work / "cells" / f"{_name(spec).replace('/', '-')}.json"
        old = json.loads(saved.read_text(encoding="utf-8")) if resume and saved.exists() else None
        if old is not None and old["spec"] == json.loads(json.dumps(asdict(spec))):
            results.append(old)
            continue
        if (spec.model, spec.precision) not in exported:
            spec.files.write_exports(spec.precision)
            exported.add((spec.model, spec.precision))
        result = _run(spec)
        if spec.threads == 1:
            first = next(iter(result["decode"].values()))
            result["alone"] = {name: _alone(spec, name) for name in first}
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_text(json.dumps(result), encoding="utf-8")
        results.append(json.loads(json.dumps(result)))
    report = {"machine": _machine(), "quick": quick, "cells": results}
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1), encoding="utf-8")
    text = markdown(report)
    click.echo(text)
    if quick or only:
        draw(report, work / "decode.png")
        click.echo(f"plot: {work / 'decode.png'}; the documentation is replaced by a whole run only", err=True)
    else:
        draw(report, ROOT / "docs" / "figures" / "decode.png")
        replace_section(ROOT / "docs" / "benchmarks.md", "decode", text)


def _specs(work: Path, quick: bool, rounds: int, core: int | None) -> list[Spec]:
    """List the cells, one thread first."""
    contexts, prefills, batches = ((64,), (64,), (1, 4)) if quick else ((64, 512, 2048), (64, 512), (1, 2, 4, 8))
    rounds = min(rounds, 8) if quick else rounds
    base = Spec(str(work), "", "fp32", 1, core, contexts, prefills, batches, rounds, turn=8)
    all_cores = usable_cores()
    counts = [1] if quick or all_cores == 1 else [1, all_cores]
    return [
        replace(base, model=model, precision=precision, threads=threads, core=core if threads == 1 else None)
        for threads in counts
        for model in (["moe-57m"] if quick else SIZES)
        for precision in get_args(Precision)
    ]


def _name(spec: Spec) -> str:
    return f"{spec.model}/{spec.precision}/{spec.threads}"


def _wanted(spec: Spec, only: tuple[str, ...]) -> bool:
    parts = _name(spec).split("/")
    return not only or any(one.split("/") == parts[: one.count("/") + 1] for one in only)


def _run(spec: Spec, alone: str | None = None) -> Result:
    """Run a cell, or the measurement of one participant alone, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps(asdict(spec)), encoding="utf-8")
        command = [sys.executable, "-m", "decoding.cell", str(file), *([alone] if alone else [])]
        begin = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT / "benchmarks", stdout=subprocess.PIPE, text=True, env={**os.environ, **QUIET}
        )
        if done.returncode:
            raise click.ClickException(f"{_name(spec)} failed; continue after mending it with --resume")
        if alone is None:
            click.echo(f"  took {time.perf_counter() - begin:.0f} s", err=True)
        result: Result = json.loads(done.stdout.splitlines()[-1])
        return result


def _alone(spec: Spec, name: str) -> Result:
    """Return the medians of three processes of one participant."""
    runs = [_run(spec, name) for _ in range(3)]
    figures = ("load_seconds", "first_token_seconds", "memory_bytes")
    return {**runs[0], **{figure: median(run[figure] for run in runs) for figure in figures}}


def _machine() -> Result:
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "llama.cpp" not in missing():
        import llama_cpp

        versions["llama.cpp features"] = llama_cpp.llama_print_system_info().decode().strip(" |")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


if __name__ == "__main__":
    main()
