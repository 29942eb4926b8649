"""The dial of a mixture that was trained elsewhere: its curve by both rules for experts, and the time at each point.

    python benchmarks/mixture_dial.py --minutes 20 --out mixture.json

A mixture of the shape of Qwen3-MoE (8 experts, of which a token uses `--active`, SwiGLU, QK-norm by head) is trained on
`--data` for the given minutes, written as a Hugging Face folder, and read back by `adaptive import`. So it has what an
imported model has: fixed routing, and nothing of its training. Then it is exported, calibrated and measured. The loss,
the KL divergence and the agreement are those on text that no threshold was chosen on.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from page.table import table
from processes.command import adaptive, settings

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "cpp-docs" / "pages.jsonl"
SHAPE: dict[str, Any] = {
    "model.dim": 256,
    "model.num_layers": 6,
    "model.num_heads": 8,
    "model.num_kv_heads": 4,
    "model.context_length": 256,
    "model.ffn.routing": "top_k",
    "model.ffn.num_experts": 8,
    "model.ffn.experts_per_token": 2,
    "model.ffn.expert_dim": 256,
}
"""Settings of the model: routing, norms and positions as in Qwen3-MoE."""
SMALL = {"model.dim": 64, "model.num_layers": 3, "model.num_heads": 4, "model.num_kv_heads": 2,
         "model.context_length": 128, "model.ffn.expert_dim": 64}  # fmt: skip
TRAINER: dict[str, Any] = {
    "trainer.batch_size": 16,
    "trainer.tensorboard": False,
    "trainer.eval_every": 100_000,
    "trainer.final_eval_tokens": 8192,
}


def curve_table(curve: dict[str, Any]) -> str:
    """Return the table of a curve, in Markdown."""
    columns = ("compute", "experts", "loss", "KL", "agreement", "ms per token", "of the full model's")
    lines = []
    points = curve["points"]
    full = points[-1]["milliseconds_per_token"]
    for point in reversed(points):
        speed = point["milliseconds_per_token"]
        times = ["-", "-"] if speed is None else [f"{speed['median']:.3f}", f"{speed['median'] / full['median']:.1%}"]
        lines.append([
            f"{point['compute']:.3f}", f"{point['experts_per_token']:.2f}", f"{point['loss']:.4f}",
            f"{point['kl']:.4f}", f"{point['agreement']:.2%}", *times,
        ])  # fmt: skip
    return table(columns, lines)


@click.command()
@click.option("--minutes", type=float, default=20, show_default=True, help="Minutes of training.")
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=DATA,
              help="JSON lines with a field `text`; by default ../shared/data/cpp-docs/pages.jsonl.")  # fmt: skip
@click.option("--target", multiple=True, default=("cpu",), show_default=True, help="Graphs to write.")
@click.option("--active", type=int, default=2, show_default=True, help="Experts of a token; from 3 the rules differ.")
@click.option("--small", is_flag=True, help="A model of a few hundred thousand parameters, to try the script.")
@click.option("--precision", default="int8", show_default=True, help="Precision of the export.")
@click.option("--tokens", type=int, default=16384, show_default=True, help="Tokens to calibrate on.")
@click.option("--repeats", type=int, default=11, show_default=True, help="Rounds of timing.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; by default a temporary folder.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON to this file.")
def main(
    minutes: float, data: Path, target: tuple[str, ...], active: int, small: bool, precision: str, tokens: int,
    repeats: int, folder: Path | None, out: Path | None,
) -> None:  # fmt: skip
    """Train a mixture, import it as if it were foreign, and print the curve of its dial."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        mixture(place, minutes, data, SHAPE | (SMALL if small else {}) | {"model.ffn.experts_per_token": active})
        result = measure(place, precision, target, tokens, repeats)
    for rule, loss in sorted(result["curve"]["rule_losses"].items()):
        mark = ", the dial" * (rule == result["curve"]["expert_rule"])
        click.echo(f"experts left out by {rule}: mean loss {loss:.4f} over the same FLOPs{mark}")
    click.echo(curve_table(result["curve"]))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def mixture(place: Path, minutes: float, data: Path, shape: dict[str, Any]) -> None:
    """Train a mixture in `place`, and import it there as a run of the name `mixture`."""
    size = "512" if shape["model.dim"] < 128 else "4096"
    adaptive("train", "--data", str(data.resolve()), "--tokenizer", "bpe", "--vocab-size", size, "--max-seconds",
             str(60 * minutes), "--name", "ours", "--overwrite", *settings(shape | TRAINER), folder=place)  # fmt: skip
    click.echo("trained", err=True)
    adaptive("export", "ours", "--to", "hf", "--out", "foreign", folder=place)
    adaptive("import", "foreign", "--name", "mixture", "--heldout", "runs/ours/heldout.txt", folder=place)
    click.echo("imported", err=True)


def measure(place: Path, precision: str, targets: tuple[str, ...], tokens: int, repeats: int) -> dict[str, Any]:
    """Export and calibrate the mixture, and return what `calibrate --json` prints."""
    quantize = [] if precision == "fp32" else ["--quantize", precision]
    graphs = [part for target in targets for part in ("--target", target)]
    adaptive("export", "mixture", "--onnx", *graphs, *quantize, folder=place)
    click.echo("exported", err=True)
    printed = adaptive("calibrate", "mixture", "--tokens", str(tokens), "--repeats", str(repeats), "--json",
                       folder=place)  # fmt: skip
    result: dict[str, Any] = json.loads(printed)
    return result


if __name__ == "__main__":
    main()
