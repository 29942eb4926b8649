"""Quality per second of training: held-out loss after equal wall-clock time on one core, ours and peers.

    python benchmarks/train_quality.py --data ../shared/data/shakespeare.txt --seeds 3

The models train on the first 90 % of the characters. The last 10 % are scored in windows of the training context; ours
by the exported model on ONNX Runtime, which also counts the executed FLOPs. The seconds are those of the trainer from
its first step to its last save, with compilation from an empty cache. Peers (extra `bench`) follow nanoGPT's schedule
for a CPU, stretched to the same seconds, in the same precision as ours.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptive_lm.runtime import Dial, load
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.measuring.quality.given_text import read_text
from adaptive_lm.runtime.measuring.quality.perplexity import score, windows
from adaptive_lm.train.system.device import autocast, choose_precision
from processes.command import adaptive, settings
from training.by_clock import train_by_clock
from training.cores import Cores
from training.peers import PlainGPT, Shape, llama

RECIPE = "shakespeare-char"
DENSE = {"model.ffn.routing": "dense"}
TWIN, ADAPTIVE = "dense twin", "adaptive"
OURS: dict[str, Mapping[str, object]] = {
    TWIN: DENSE | {"model.num_layers": 4},
    "dense, as many layers": DENSE,
    ADAPTIVE: {},
}
"""Settings over the recipe."""
PEERS = ("nanoGPT's recipe", "Llama, the same recipe")


class Outcome(NamedTuple):
    """The result of one training of one kind."""

    kind: str
    seed: int
    steps: int
    loss: float  # nats per character of the held-out text
    megaflops: float  # executed per token on the held-out text; NaN for peers
    experts: float


def train_ours(folder: Path, data: Path, kind: str, seed: int, seconds: float, core: int) -> Outcome:
    """Train, export and score one kind of ours."""
    name = f"{kind.replace(', ', '-').replace(' ', '-')}-{seed}"
    model = folder / "runs" / name / "model"
    if not (model / "manifest.json").exists():
        ends = ["--max-seconds", str(seconds), "--seed", str(seed), "--name", name, "--overwrite"]
        shape = settings(OURS[kind])
        with tempfile.TemporaryDirectory() as empty:
            cache = {"TORCHINDUCTOR_CACHE_DIR": empty}
            adaptive("train", RECIPE, "--data", str(data), *ends, *shape, folder=folder, core=core, more=cache)
        adaptive("export", name, "--onnx", "--threads", "1", folder=folder, core=core)
    records = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    engine = load(model, device="cpu", threads=1)
    text, _ = read_text(engine, None, model.parent, "--data")
    scored = score(
        engine, resolve(engine.manifest, Dial()), windows(text, len(text.ids), engine.manifest.model.context_length)
    )
    tally = scored.tally
    return Outcome(
        kind, seed, json.loads(records[-1])["step"], scored.loss, tally.executed_flops / tally.tokens / 1e6,
        tally.experts / tally.layers,
    )  # fmt: skip


def train_peer(data: Path, kind: str, seed: int, seconds: float, core: int) -> Outcome:
    """Train and score a peer: batch 12 x 64, AdamW at 1e-3 after 5 % of warm-up, a cosine down to 1e-4."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    text = data.read_text("utf-8")
    place = {character: index for index, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([place[character] for character in text])
    split = int(0.9 * len(ids))
    train, held_out = ids[:split], ids[split:]
    shape = Shape(len(place), 64, 128, 4, 4)
    model = PlainGPT(shape) if kind == PEERS[0] else llama(shape, 344)

    def logits(batch: Tensor) -> Tensor:
        out = model(batch)
        return out if isinstance(out, Tensor) else out.logits

    def loss_of(batch: Tensor, targets: Tensor) -> Tensor:
        with autocast(torch.device("cpu"), choose_precision("auto", torch.device("cpu"))):
            scores = logits(batch)
        return F.cross_entropy(scores.flatten(0, 1).float(), targets.flatten())

    steps = train_by_clock(model, train, loss_of, seconds, rate=1e-3, second_beta=0.99, batch=12, length=64)
    nats, count = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(held_out) - 1, 64):
            window = held_out[first : first + 65]
            nats += float(loss_of(window[None, :-1], window[None, 1:])) * (len(window) - 1)
            count += len(window) - 1
    return Outcome(kind, seed, steps, nats / count, float("nan"), float("nan"))


def table(outcomes: list[Outcome]) -> str:
    """Return a table with a line per kind."""
    lines = [
        "| | steps | held-out loss, each seed | mean | executed MFLOPs per token | experts |",
        "|---|---|---|---|---|---|",
    ]
    for kind in (*OURS, *PEERS):
        own = [each for each in outcomes if each.kind == kind]
        if own:
            losses = ", ".join(f"{each.loss:.3f}" for each in own)
            means = [float(np.mean([each[field] for each in own])) for field in (2, 3, 4, 5)]
            flops, experts = (f"{value:.2f}" if value == value else "" for value in means[2:])
            lines.append(f"| {kind} | {means[0]:.0f} | {losses} | {means[1]:.3f} | {flops} | {experts} |")
    return "\n".join(lines)


def verdict(outcomes: list[Outcome]) -> str:
    """Compare the adaptive model with its dense twin, seed by seed, and their FLOPs."""
    dense, sparse = ([each for each in outcomes if each.kind == kind] for kind in (TWIN, ADAPTIVE))
    gaps = [a.loss - d.loss for d, a in zip(dense, sparse, strict=True)]
    share = np.mean([a.megaflops for a in sparse]) / np.mean([d.megaflops for d in dense])
    return (
        f"adaptive - dense twin: {np.mean(gaps):+.3f} nats ({', '.join(f'{gap:+.3f}' for gap in gaps)}) at {share:.2f} "
        "of its executed FLOPs per token"
    )


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), default="../shared/data/shakespeare.txt",
              show_default=True, help="Text to train on.")  # fmt: skip
@click.option("--seconds", default=144.0, show_default=True, help="Training time of each kind, on one core.")
@click.option("--seeds", default=3, show_default=True, help="Runs per kind.")
@click.option("--jobs", default=1, show_default=True, help="Runs trained at once, each pinned to a core.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice([*OURS, *PEERS]), default=[*OURS, *PEERS],
              help="Kind to train; may be repeated; by default all.")  # fmt: skip
@click.option("--folder", type=click.Path(path_type=Path), help="Folder of the runs; finished ones are reused.")
def main(data: Path, seconds: float, seeds: int, jobs: int, kinds: tuple[str, ...], folder: Path | None) -> None:
    """Print the held-out loss of each kind and seed."""
    cores = Cores(jobs)
    data = data.resolve()

    def one(here: Path, kind: str, seed: int) -> Outcome:
        with cores.one() as core:
            if kind in OURS:
                outcome = train_ours(here, data, kind, seed, seconds, core)
            else:
                with ProcessPoolExecutor(1) as apart:
                    outcome = apart.submit(train_peer, data, kind, seed, seconds, core).result()
        click.echo(f"  {kind}, seed {seed}: {outcome.loss:.4f} after {outcome.steps} steps", err=True)
        return outcome

    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(jobs) as pool:
        here = (folder or Path(temporary)).resolve()
        here.mkdir(parents=True, exist_ok=True)
        tasks = [pool.submit(one, here, kind, seed) for seed in range(seeds) for kind in kinds]
        outcomes = [task.result() for task in tasks]
    click.echo(f"\n{data.name}, {seconds:g} s of training on one core\n\n{table(outcomes)}\n")
    if {TWIN, ADAPTIVE} <= set(kinds):
        click.echo(verdict(outcomes))


if __name__ == "__main__":
    main()
