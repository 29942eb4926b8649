"""Small models with and without a teacher, and the dial with and without self-distillation, at equal training time.

    python benchmarks/distillation.py --text shakespeare.txt --out distillation.json

A dense teacher of 4 layers is trained once. Students of 2 layers, half its FLOPs, are trained with the cross-entropy of
the text alone and with the teacher's stored outputs; then models with experts and exits, with and without
self-distillation, which are scored at several points of their dial. All losses are in nats per token on the held-out
tenth of the text, which no model has met.

Time is processor time of one thread, by the clock of the trainer: neighbours on the machine change nothing but the
cache. Runs of one seed come after each other. A run that exists in `--runs` is not trained again.
"""

import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import torch

from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import make_config, merge
from adaptive_lm.train.data import prepare
from adaptive_lm.train.distillation.small_dials import lowered
from adaptive_lm.train.loop.clock import Clock
from adaptive_lm.train.loop.figures.evaluate import evaluate
from adaptive_lm.train.model.output import ThresholdTensors
from adaptive_lm.train.model.transformer import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import Run
from adaptive_lm.train.run.metrics import read_metrics

BASE: dict[str, Any] = {
    "tokenizer": {"kind": "chars"},
    "model": {
        "context_length": 256, "dim": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4,
        "ffn": {"routing": "dense", "dim": 344},
    },
    "schedule": {"decay_share": 0.6},
    "trainer": {
        "steps": None, "batch_size": 8, "threads": 1, "matmul": "torch", "tensorboard": False, "eval_every": 100_000,
        "checkpoint_every": 100_000, "log_every": 50, "routing_snapshots": 0, "final_eval_tokens": None,
        "device": "cpu",
    },
}  # fmt: skip
ROUTED = {
    "model": {
        "num_layers": 3, "depth": {"exit_layers": [0, 1]},
        "ffn": {"routing": "top_p", "num_experts": 4, "expert_dim": 192, "experts_per_token": 2.0},
    },
    "losses": {"load_balancing_loss": 0.01},
}  # fmt: skip
TEACHER = {"model": {"num_layers": 4}}
KINDS: dict[str, dict[str, Any]] = {
    "text alone": {},
    "forward KL": {"distillation": {"weight": 0.5}},
    "dial": ROUTED,
    "dial, from itself": merge(ROUTED, {"self_distillation": {"exits": 0.3, "dials": 0.3}}),
    # at no more cost than without: the distribution after the last layer teaches the exits in place of the text
    "dial, exits from itself": merge(
        merge(ROUTED, {"losses": {"exit_loss": 0.0}}), {"self_distillation": {"exits": 0.3}}
    ),
}
EXPERTS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Factors on `router_top_p`."""
EXITS = (1.0, 0.9, 0.7, 0.5, 0.0)
"""Confidences from which a token leaves."""
DIAL_TOKENS = 16384


def config(text: Path, kind: Mapping[str, Any], seconds: float, seed: int, cache: Path, teacher: Path) -> Any:
    """Make the config of a run."""
    own: dict[str, Any] = {
        "data": {"sources": [str(text)], "cache_dir": str(cache)},
        "trainer": {"max_seconds": seconds, "seed": seed},
    }
    if "distillation" in kind:
        own["distillation"] = {"teacher": {"model": str(teacher)}}
    return make_config(BASE, [kind, own])


def trained(run: Run, settings: Any) -> dict[str, Any]:
    """Train a run unless it exists, and return its last record."""
    if not run.begun:
        training.begin(settings, run, overwrite=True)
    record = read_metrics(run.path / "metrics.jsonl")[-1]
    more = {name: value for name, value in record.items() if name.startswith(("teacher_", "distillation", "val_"))}
    return {**more, "steps": record["step"], "seconds": record["seconds"]}


def points(run: Run) -> Iterator[dict[str, Any]]:
    """Score a run at several points of its dial, each by one mechanism alone."""
    checkpoint = load_checkpoint(run.path)
    settings = checkpoint.config
    corpus = prepare(settings.data, settings.tokenizer, seed=settings.trainer.seed, log=lambda _: None)
    model = Transformer(settings.model)
    model.load_state_dict(checkpoint.model_state)
    full = model.default_thresholds()
    for mechanism, factors in (("experts", EXPERTS), ("exits", EXITS)):
        for factor in factors:
            at = lowered(
                full, [factor if mechanism == "experts" else 1.0, 1.0, 1.0, 1.0 if mechanism == "experts" else factor]
            )
            windows = corpus.val_windows(256, 8, DIAL_TOKENS)
            scored = evaluate(_At(model, at), windows, 8, 1.0, "bf16")  # type: ignore[arg-type]  # it asks no more of a model
            assert scored is not None
            record: dict[str, Any] = {"mechanism": mechanism, "factor": factor, "loss": scored.loss}
            yield record | scored.usage


class _At:
    """A model at given thresholds, for `evaluate`."""

    def __init__(self, model: Transformer, thresholds: ThresholdTensors) -> None:
        self.model, self.thresholds, self.embedding = model, thresholds, model.embedding

    def __call__(self, ids: torch.Tensor) -> Any:
        return self.model(ids, self.thresholds)

    def eval(self) -> None:
        self.model.eval()

    def train(self) -> None:
        self.model.train()


def spread(values: list[float]) -> str:
    """Write a mean and the range around it."""
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def table(results: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Return the table of the final losses in Markdown."""
    lines = ["| model | held-out loss: mean (least to most) | steps | seconds |", "|---|---|---|---|"]
    for kind, runs in results.items():
        steps, seconds = (statistics.mean(run[key] for run in runs) for key in ("steps", "seconds"))
        lines.append(f"| {kind} | {spread([run['val_loss'] for run in runs])} | {steps:.0f} | {seconds:.1f} |")
    return lines


def dial_table(dials: Mapping[str, list[list[dict[str, Any]]]]) -> list[str]:
    """Return the table of the dials in Markdown: each point of one kind beside that of the other."""
    kinds = list(dials)
    lines = [
        "| setting | " + " | ".join(f"{kind}: loss, units" for kind in kinds) + " |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for number, point in enumerate(dials[kinds[0]][0]):
        unit = "experts_per_token" if point["mechanism"] == "experts" else "layers_per_token"
        cells = []
        for kind in kinds:
            same = [run[number] for run in dials[kind]]
            cells.append(
                f"{spread([each['loss'] for each in same])}, {statistics.mean(each[unit] for each in same):.2f}"
            )
        lines.append(f"| {point['mechanism']} {point['factor']:g} | {' | '.join(cells)} |")
    return lines


@click.command()
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--runs", type=click.Path(path_type=Path), default=Path("distillation-runs"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--seconds", default=100.0, show_default=True, help="Processor seconds of a student.")
@click.option("--teacher-seconds", default=300.0, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--first-seed", default=0, show_default=True, help="To train seeds in several processes.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), default=list(KINDS))
def main(
    text: Path,
    runs: Path,
    out: Path,
    seconds: float,
    teacher_seconds: float,
    seeds: int,
    first_seed: int,
    kinds: tuple[str, ...],
) -> None:
    """Train, score, and print tables."""
    torch.set_num_threads(1)
    Clock.now = staticmethod(time.process_time)
    cache, elder = runs / "cache", Run(runs / "teacher")
    result: dict[str, Any] = {
        "teacher": trained(elder, config(text, TEACHER, teacher_seconds, 0, cache, elder.path)),
        "students": {}, "dials": {},
    }  # fmt: skip
    if "forward KL" in kinds:
        began = time.process_time()
        storing = config(text, KINDS["forward KL"], seconds, 0, cache, elder.path)
        training.begin(
            make_config(storing.model_dump(), [{"trainer": {"steps": 0}}]),
            Run(runs / f"storing-{first_seed}"),
            overwrite=True,
        )
        result["stored_seconds"] = time.process_time() - began
    for seed in range(first_seed, first_seed + seeds):
        for kind in kinds:
            run = Run(runs / f"{kind.replace(', ', '-').replace(' ', '-')}-{seed}")
            done = trained(run, config(text, KINDS[kind], seconds, seed, cache, elder.path))
            result["students"].setdefault(kind, []).append(done)
            if kind.startswith("dial"):
                result["dials"].setdefault(kind, []).append(list(points(run)))
            out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    lines = [
        f"teacher: held-out loss {result['teacher']['val_loss']:.4f}",
        f"its outputs were stored in {result.get('stored_seconds', 0):.0f} s",
        *table(result["students"]),
    ]
    lines += dial_table(result["dials"]) if result["dials"] else []
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
