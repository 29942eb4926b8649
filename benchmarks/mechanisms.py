"""Gain and cost of each adaptive mechanism: trained for equal time, then run on ONNX Runtime beside dense models.

    python benchmarks/mechanisms.py --data builtin:python-docs --data ../shared/data/shakespeare.txt --seeds 2

Every kind trains for the same seconds on one core (`--jobs 2` trains two at once, each pinned to a core), is exported
with the full check, and reads the same held-out text on ONNX Runtime. Times are interleaved over all kinds in one
process on one thread. The full model is calibrated as well: its dial is compared with its own compute 1.0 and with the
dense model of equal measured time.
"""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from adaptive_lm.runtime import Dial, Engine, load
from adaptive_lm.runtime.dial import Thresholds, resolve
from adaptive_lm.runtime.measuring.quality.given_text import read_text
from adaptive_lm.runtime.measuring.quality.perplexity import Score, score, windows
from adaptive_lm.runtime.measuring.timing import Timed, time_engines
from processes.command import adaptive, settings
from training.cores import Cores

BASE: dict[str, Any] = {
    "model.context_length": 128,
    "trainer.batch_size": 16,
    "trainer.threads": 1,
    "trainer.tensorboard": False,
    "trainer.eval_every": 100_000,
    "trainer.final_eval_tokens": 1,
}
HEADS = {"model.heads.routing": "top_p", "model.heads.shared_heads": 1, "model.heads.heads_per_token": 3}
DEPTH = {"model.depth.layers_share": 0.75}
EXIT = {"model.depth.exit_layers": [1, 2]}
COPE = {"model.attention.positions": "cope", "model.attention.max_positions": 32}
WINDOWS = {"model.attention.window": 128, "model.attention.window_kind": "learned", "model.attention.window_least": 32}
DENSE = {"model.ffn.routing": "dense"}
ZERO_EXPERTS = {"zeros": 1, "copies": 1, "constants": 2}
FINE = {"num_experts": 30, "expert_dim": 54, "experts_per_token": 4.4, "shared_expert_dim": 108}
KINDS: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "dense, 3 layers": DENSE | {"model.num_layers": 3},
    "dense, 8 layers": DENSE | {"model.num_layers": 8},
    "dense, 192 wide": DENSE | {"model.dim": 192, "model.num_heads": 6, "model.num_kv_heads": 3, "model.ffn.dim": 516},
    "top-2": {"model.ffn.routing": "top_k", "model.ffn.experts_per_token": 2, "model.ffn.expert_dim": 172},
    "top-p": {},
    "relu": {"model.ffn.routing": "relu"},
    "fine-grained, shared": {f"model.ffn.{name}": value for name, value in FINE.items()},
    "+ zero experts": {"model.ffn.zero_experts": ZERO_EXPERTS},
    "+ heads": HEADS,
    "+ depth": DEPTH,
    "+ exit": EXIT,
    "+ CoPE": COPE,
    "+ windows": WINDOWS,
    "full": HEADS | DEPTH | EXIT | COPE | WINDOWS | {"model.attention.positions": ["cope", "rope", "cope", "rope"]},
}
"""Settings over BASE: 4 layers of width 128 and a hidden width of 344 used per token, unless a kind sets another."""
POINTS = ("0.25", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1")
"""Values of `compute` in the plot; the dial itself is calibrated at ten."""


@dataclass
class Row:
    """Measurements of one kind and seed."""

    kind: str
    """A key of KINDS, or a point of the dial."""
    seed: int
    """Seed of the run."""
    steps: int
    """Training steps in the given seconds."""
    loss: float
    """Held-out loss on ONNX Runtime, nats per token."""
    flops: float
    """FLOPs executed per token of the held-out text."""
    experts: float
    """Experts per token and layer run."""
    heads: float
    """Heads per token and layer run."""
    layers: float
    """Layers per token."""
    milliseconds: float
    """Median time per decoded token."""
    p5: float
    """5th percentile of it."""
    p95: float
    """95th percentile of it."""


def train(folder: Path, data: str, kind: str, seed: int, seconds: float, core: int) -> None:
    """Train and export one kind, unless that is done already."""
    name = run_name(kind, seed)
    if (folder / "runs" / name / "model" / "manifest.json").exists():
        return
    tokenizer = ["bpe", "--vocab-size", "1024"] if data.startswith("builtin:") else ["chars"]
    ends = ["--max-seconds", str(seconds), "--seed", str(seed), "--name", name, "--overwrite"]
    if not trained(folder / "runs" / name):
        shape = settings(BASE | KINDS[kind])
        adaptive("train", "--data", data, "--tokenizer", *tokenizer, *ends, *shape, folder=folder, core=core)
    adaptive("export", name, "--onnx", "--threads", "1", folder=folder, core=core)
    click.echo(f"  trained {kind}, seed {seed}", err=True)


def trained(run: Path) -> bool:
    """Return whether a run reached its end: only then has its last record a held-out loss."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return bool(lines) and json.loads(lines[-1]).get("val_loss") is not None


def train_all(folder: Path, data: str, names: list[str], seeds: int, seconds: float, jobs: int) -> None:
    """Train each of these kinds with each seed, in an order that rotates by one from seed to seed."""
    cores = Cores(jobs)

    def one(kind: str, seed: int) -> None:
        with cores.one() as core:
            train(folder, data, kind, seed, seconds, core)

    with ThreadPoolExecutor(jobs) as pool:
        orders = ((seed, names[seed % len(names) :] + names[: seed % len(names)]) for seed in range(seeds))
        for task in [pool.submit(one, kind, seed) for seed, order in orders for kind in order]:
            task.result()


def run_name(kind: str, seed: int) -> str:
    """Return the name of a run."""
    return f"{kind.replace('+ ', 'with-').replace(', ', '-').replace(' ', '-').lower()}-{seed}"


def measure(
    folder: Path, names: list[str], seed: int, tokens: int, rounds: int
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Measure these kinds with one seed, and the points of the full model's dial where it is among them."""
    engines = {kind: open_model(folder, kind, seed) for kind in names}
    default = {kind: resolve(engine.manifest, default_dial(engine)) for kind, engine in engines.items()}
    cases: list[tuple[str, Engine, Thresholds]] = [(kind, engines[kind], limits) for kind, limits in default.items()]
    if "full" in engines:
        full = engines["full"]
        cases += [(point, full, resolve(full.manifest, Dial(compute=float(point)))) for point in POINTS]
    text, _ = read_text(engines[names[-1]], None, folder / "runs" / run_name(names[-1], seed), "--data")
    prompt, answer = text.ids[:32], text.ids[32:112]
    timed = time_engines([(engine, limits) for _, engine, limits in cases], prompt, answer, repeats=rounds, seed=seed)
    rows, points = [], []
    for (name, engine, limits), one in zip(cases, timed, strict=True):
        scored = score(engine, limits, windows(text, tokens, engine.manifest.model.context_length))
        row = row_of(name, seed, folder, scored, one)
        rows.append(row) if name in KINDS else points.append({**vars(row), "compute": float(name)})
    return rows, points


def open_model(folder: Path, kind: str, seed: int) -> Engine:
    """Load the exported model of a run."""
    return load(folder / "runs" / run_name(kind, seed) / "model", device="cpu", threads=1)


def default_dial(engine: Engine) -> Dial:
    """Return the trained thresholds; with exits, those at which 95 % of the tokens keep the whole model's choice."""
    curve = engine.manifest.curve
    return Dial(agreement=0.95) if curve is not None and curve.agreement else Dial()


def row_of(name: str, seed: int, folder: Path, scored: Score, timed: Timed) -> Row:
    """Put the measurements of one case together."""
    tally, speed = scored.tally, timed.milliseconds
    metrics = folder / "runs" / run_name(name if name in KINDS else "full", seed) / "metrics.jsonl"
    return Row(
        kind=name,
        seed=seed,
        steps=json.loads(metrics.read_text().splitlines()[-1])["step"],
        loss=scored.loss,
        flops=tally.executed_flops / tally.tokens,
        experts=tally.experts / tally.layers,
        heads=tally.heads / tally.layers,
        layers=tally.layers / tally.tokens,
        milliseconds=speed.median,
        p5=speed.p5,
        p95=speed.p95,
    )


def table(rows: list[Row]) -> str:
    """Return a table of means over the seeds, with half the range of the losses."""
    lines = [
        "| kind | steps | held-out loss | experts | heads | layers | MFLOPs per token | ms per token (p5 to p95) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        loss = [row.loss for row in own]
        spread = f" ± {(max(loss) - min(loss)) / 2:.3f}" if len(own) > 1 else ""
        lines.append(
            f"| {kind} | {mean(own, 'steps'):.0f} | {np.mean(loss):.3f}{spread} | {mean(own, 'experts'):.2f} | "
            f"{mean(own, 'heads'):.2f} | {mean(own, 'layers'):.2f} | {mean(own, 'flops') / 1e6:.2f} | "
            f"{mean(own, 'milliseconds'):.3f} ({mean(own, 'p5'):.3f} to {mean(own, 'p95'):.3f}) |"
        )
    return "\n".join(lines)


def mean(rows: list[Row], name: str) -> float:
    """Return the mean of a field."""
    return float(np.mean([getattr(row, name) for row in rows]))


def verdicts(rows: list[Row], points: list[dict[str, Any]]) -> list[str]:
    """Summarise the full model at compute 0.5: beside its own compute 1.0, and beside the best dense model."""
    half = [point for point in points if point["compute"] == 0.5]
    whole = [point for point in points if point["compute"] == 1.0]
    worse = [a["loss"] / b["loss"] - 1 for a, b in zip(half, whole, strict=True)]
    time = float(np.mean([point["milliseconds"] for point in half]))
    loss = float(np.mean([point["loss"] for point in half]))
    dense = {kind: [row for row in rows if row.kind == kind] for kind in KINDS if kind.startswith("dense")}
    fitting = {kind: own for kind, own in dense.items() if mean(own, "milliseconds") <= time}
    lines = [f"full at compute 0.5 vs its own compute 1.0: {np.mean(worse):+.2%} loss (target: at most +1.5 %)"]
    if fitting:
        best = min(fitting, key=lambda kind: mean(fitting[kind], "loss"))
        lines.append(
            f"full at compute 0.5: loss {loss:.3f} in {time:.3f} ms; best dense model that is not slower, {best}: "
            f"{mean(fitting[best], 'loss'):.3f} in {mean(fitting[best], 'milliseconds'):.3f} ms"
        )
    speeds = [np.mean([p["milliseconds"] for p in points if p["compute"] == float(c)]) for c in POINTS]
    rises = bool((np.diff(speeds) >= 0).all())
    lines.append(
        f"the dial: {speeds[0]:.3f} to {speeds[-1]:.3f} ms, {'monotone' if rises else 'NOT monotone'} in measured time"
    )
    return lines


def plot(rows: list[Row], points: list[dict[str, Any]], path: Path, title: str) -> None:
    """Plot loss over time and over executed FLOPs: the full model's dial as a line, all kinds as points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, name, unit, scale in (
        (panels[0], "milliseconds", "ms per token, one thread", 1.0),
        (panels[1], "flops", "executed MFLOPs per token", 1e-6),
    ):
        line = [
            (np.mean([p[name] for p in points if p["compute"] == float(c)]) * scale,
             np.mean([p["loss"] for p in points if p["compute"] == float(c)]))
            for c in POINTS
        ]  # fmt: skip
        panel.plot(*zip(*line, strict=True), marker=".", color="#b2182b", label="full, compute 0.25 to 1")
        for kind in dict.fromkeys(row.kind for row in rows):
            own = [row for row in rows if row.kind == kind]
            at = (mean(own, name) * scale, mean(own, "loss"))
            panel.plot(*at, "s" if kind.startswith("dense") else "o", color="#2166ac" if "dense" in kind else "#d9a441")
            panel.annotate(kind, at, textcoords="offset points", xytext=(5, 3), fontsize=8)
        panel.set_xlabel(unit)
        panel.legend(fontsize=8)
    panels[0].set_ylabel("held-out loss, nats per token")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


@click.command()
@click.option("--data", "sources", multiple=True, default=["builtin:python-docs"], show_default=True,
              help="Text to train on; may be repeated.")  # fmt: skip
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)),
              help="Kind to measure; may be repeated. Default: all.")  # fmt: skip
@click.option("--seconds", default=144.0, show_default=True, help="Training time of each kind, on one core.")
@click.option("--seeds", default=1, show_default=True, help="Runs per kind.")
@click.option("--jobs", default=1, show_default=True, help="Runs trained at once, each pinned to a core.")
@click.option("--tokens", default=16384, show_default=True, help="Held-out tokens to score.")
@click.option("--rounds", default=9, show_default=True, help="Interleaved rounds of 80 decoded tokens.")
@click.option("--folder", type=click.Path(path_type=Path), help="Folder of the runs; finished ones are reused.")
@click.option("--plot", "plots", type=click.Path(path_type=Path), help="Folder for one PNG per text.")
def main(
    sources: tuple[str, ...], kinds: tuple[str, ...], seconds: float, seeds: int, jobs: int, tokens: int, rounds: int,
    folder: Path | None, plots: Path | None,
) -> None:  # fmt: skip
    """Print a table for each text, and, of all kinds, what the full model's dial reaches."""
    names = list(kinds or KINDS)
    with tempfile.TemporaryDirectory() as temporary:
        for source in sources:
            name = source.rpartition(":")[2].rpartition("/")[2].removesuffix(".txt")
            here = (folder or Path(temporary)).resolve() / name
            here.mkdir(parents=True, exist_ok=True)
            data = source if ":" in source else str(Path(source).resolve())
            train_all(here, data, names, seeds, seconds, jobs)
            rows: list[Row] = []
            points: list[dict[str, Any]] = []
            for seed in range(seeds):
                for kind in {"+ exit", "full"} & set(names):
                    model = f"runs/{run_name(kind, seed)}/model"
                    adaptive("calibrate", "--model", model, "--threads", "1", folder=here)
                more_rows, more_points = measure(here, names, seed, tokens, rounds)
                rows += more_rows
                points += more_points
            click.echo(f"\n{name}, {seconds:g} s of training on one core, {seeds} seeds\n\n{table(rows)}\n")
            if points:
                click.echo("\n".join(verdicts(rows, points)))
            if points and plots is not None:
                plots.mkdir(parents=True, exist_ok=True)
                plot(rows, points, plots / f"dial-{name}.png", f"{name}: {seconds:g} s of training each")


if __name__ == "__main__":
    main()
