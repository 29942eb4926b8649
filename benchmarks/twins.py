"""Do top-p experts beat their plain twins at equal executed FLOPs per token: one dense FFN, and a fixed top-2?

Same data, steps and seeds, the kinds in turn within each seed:

    python benchmarks/twins.py --seeds 2 --steps 150
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, pstdev

import click

ACTIVE = 344
"""Hidden width that a token uses on average, in every kind."""
KINDS = {
    "dense": {"routing": "dense", "dim": ACTIVE},
    "top-2 of 8": {"routing": "top_k", "experts_per_token": 2, "expert_dim": ACTIVE // 2},
    "top-p 1.6 of 8": {"routing": "top_p", "experts_per_token": 1.6, "expert_dim": round(ACTIVE / 1.6)},
}


@click.command()
@click.option("--data", default="builtin:python-docs", show_default=True)
@click.option("--seeds", default=2, show_default=True)
@click.option("--steps", default=150, show_default=True)
def main(data: str, seeds: int, steps: int) -> None:
    """Print held-out loss, experts per token and seconds a step of each kind."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for number, (kind, ffn) in enumerate(KINDS.items()):
                settings = {f"model.ffn.{key}": value for key, value in ffn.items()}
                settings |= {"trainer.threads": 1, "trainer.tensorboard": "false", "trainer.eval_every": steps}
                command = ["-m", "adaptive_lm.serve", "train", "--data", data, "--tokenizer", "bpe"]
                command += ["--vocab-size", "1024", "--steps", str(steps), "--seed", str(seed)]
                command += ["--name", f"kind{number}-{seed}"]
                command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
                subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True)
                records = Path(folder, "runs", f"kind{number}-{seed}", "metrics.jsonl").read_text().splitlines()
                last: dict[str, float] = json.loads(records[-1])
                found[kind].append(last)
                click.echo(f"seed {seed} {kind:15} loss {last['val_loss']:.4f}", err=True)
    for kind, records in found.items():
        losses = [record["val_loss"] for record in records]
        click.echo(
            f"{kind:15} held-out loss {mean(losses):.4f} +- {pstdev(losses):.4f}, experts "
            f"{mean(r['val_experts_per_token'] for r in records):.2f}, "
            f"{mean(r['seconds'] for r in records) / steps:.3f} s a step"
        )


if __name__ == "__main__":
    main()
