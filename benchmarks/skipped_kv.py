"""Keys and values of a token that skips a layer: none, or those of its unchanged state (`depth.skipped_kv`).

    python benchmarks/skipped_kv.py --seeds 3 --steps 300

Trains the same model with each policy (same data, steps, seeds and controller), then times decoding with both in turn.
Then trains one model with exits per seed, which does not depend on the policy, and scores it under both.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import mean, median, pstdev

import click
import torch

from adaptive_lm.export.source import read
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.train.model import Transformer, cross_entropy
from processes.command import adaptive, settings

POLICIES = ("none", "project")


@click.command()
@click.option("--data", default="builtin:python-docs", show_default=True, help="Text to train on.")
@click.option("--seeds", default=3, show_default=True, help="Runs per policy.")
@click.option("--steps", default=300, show_default=True, help="Training steps of each run.")
@click.option("--share", default=0.6, show_default=True, help="Share of the tokens that run each routed layer.")
@click.option("--tokens", default=192, show_default=True, help="Decoded tokens per timed round.")
@click.option("--rounds", default=9, show_default=True, help="Interleaved rounds.")
def main(data: str, seeds: int, steps: int, share: float, tokens: int, rounds: int) -> None:
    """Print held-out loss per policy and seed, and the ratio of decode times."""
    with tempfile.TemporaryDirectory() as folder:
        losses: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        layers: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for seed in range(seeds):
            for policy in POLICIES:
                depth = {"model.depth.skipped_kv": policy, "model.depth.layers_share": share}
                record = _train(Path(folder), data, f"{policy}-{seed}", seed, steps, depth)
                losses[policy].append(record["val_loss"])
                layers[policy].append(record["val_layers_per_token"])
                click.echo(f"seed {seed} {policy:8} loss {losses[policy][-1]:.4f} layers {layers[policy][-1]:.2f}")
        for policy in POLICIES:
            click.echo(f"{policy:8} held-out loss {mean(losses[policy]):.4f} +- {pstdev(losses[policy]):.4f}")
        differences = [a - b for a, b in zip(losses["none"], losses["project"], strict=True)]
        click.echo(f"none - project, paired by seed: {mean(differences):+.4f} +- {pstdev(differences):.4f}")
        _time(Path(folder), tokens, rounds)
        for seed in range(seeds):
            _exits(Path(folder), data, seed, steps)


def _train(folder: Path, data: str, name: str, seed: int, steps: int, depth: dict[str, object]) -> dict[str, float]:
    values = {
        **depth,
        "model.context_length": 256,
        "trainer.threads": 1,
        "trainer.tensorboard": False,
        "trainer.sequence_length": 128,
        "trainer.batch_size": 16,
        "trainer.eval_every": steps,
    }
    text = ["--data", data, "--tokenizer", "bpe", "--vocab-size", "1024"]
    ends = ["--steps", str(steps), "--seed", str(seed), "--name", name]
    adaptive("train", *text, *ends, *settings(values), folder=folder)
    records = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    last: dict[str, float] = json.loads(records[-1])
    return last


@torch.no_grad()
def _exits(folder: Path, data: str, seed: int, steps: int) -> None:
    name = f"exits-{seed}"
    _train(folder, data, name, seed, steps, {"model.depth.exit_layers": [1, 2]})
    source = read(folder / "runs" / name)
    ids = source.heldout_ids(16384)
    windows = ids[:, : ids.shape[1] // 128 * 128].view(-1, 128)
    for threshold in (1.0, 0.9, 0.7, 0.5, 0.3):
        results = []
        for policy in POLICIES:
            config = source.config.model_copy(
                update={"depth": source.config.depth.model_copy(update={"skipped_kv": policy})}
            )
            model = Transformer(config).eval()
            model.load_state_dict(source.checkpoint.model_state)
            limits = model.default_thresholds()
            out = model(
                windows[:, :-1], limits._replace(exit_threshold=torch.full_like(limits.exit_threshold, threshold))
            )
            loss = cross_entropy(out.logits, windows[:, 1:], torch.ones_like(windows[:, 1:], dtype=torch.bool))
            results.append(f"{policy} loss {loss:.4f} layers {out.usage()['layers_per_token']:.2f}")
        click.echo(f"seed {seed} exit_threshold {threshold}: {'; '.join(results)}")


def _time(folder: Path, tokens: int, rounds: int) -> None:
    sessions = {}
    for policy in POLICIES:
        name = f"{policy}-0"
        adaptive("export", name, "--threads", "1", folder=folder)
        sessions[policy] = Session(folder / "runs" / name / "model", device="cpu", threads=1)
    ratios = []
    for _ in range(rounds + 1):
        took = {policy: _decode(session, tokens) for policy, session in sessions.items()}
        ratios.append(took["none"] / took["project"])
    ratios = sorted(ratios[1:])  # the first round warms up
    click.echo(
        f"decode time none / project: median {median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, "
        f"{rounds} interleaved rounds of {tokens} tokens)"
    )


def _decode(session: Session, tokens: int) -> float:
    sequence = session.sequence()
    sequence.prefill([1, 2, 3])
    begin = time.perf_counter()
    for i in range(tokens):
        sequence.step(4 + i % 900)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
