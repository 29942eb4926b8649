"""The last part of the GPU benchmark: the commands that people type, on a real text, with the time that is left."""

import json
import subprocess
import sys
import time

from accelerator.part import Part
from adaptive_lm.train.run.metrics import read_metrics

NAME = "gpu-text"
EXPORT_SHARE = 0.35
"""Share of the time that is kept for the export, its check on the CPU, and a text."""
MODEL = {
    "model.dim": 384, "model.num_layers": 6, "model.num_heads": 6, "model.num_kv_heads": 6,
    "model.context_length": 256, "model.ffn.num_experts": 8, "model.ffn.expert_dim": 640,
    "model.ffn.experts_per_token": 1.6, "trainer.batch_size": 64,
}  # fmt: skip
SMALL = MODEL | {"model.dim": 64, "model.num_layers": 2, "model.num_heads": 4, "model.num_kv_heads": 4,
                 "model.context_length": 64, "model.ffn.expert_dim": 48, "trainer.batch_size": 4}  # fmt: skip


def adaptive(part: Part, *arguments: str) -> str:
    """Run a command of `adaptive` in the folder of the part; return what it printed.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, "-m", "adaptive_lm.serve", *arguments]
    done = subprocess.run(
        command, cwd=part.work, stdout=subprocess.PIPE, text=True, timeout=max(part.left(), 1), check=False
    )
    if done.returncode:
        raise RuntimeError(f"adaptive {' '.join(arguments[:2])} ended with {done.returncode}")
    return done.stdout


def main() -> None:
    """Train, export and generate."""
    part = Part.from_arguments()
    settings = SMALL if part.small else MODEL
    tokenizer = ["--tokenizer", "bytes"] if part.small or part.seconds < 100 else ["--vocab-size", "8192"]
    seconds = max((1 - EXPORT_SHARE) * part.seconds - 20, 5.0)

    def train() -> None:
        begin = time.monotonic()
        sets = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
        limits = ["--steps", "20"] if part.small else ["--max-seconds", str(round(seconds))]
        adaptive(
            part, "train", "--data", part.data, *tokenizer, "--name", NAME, "--overwrite", "--device", part.device,
            *([] if part.small else ["--compile"]), *limits, *sets,
        )  # fmt: skip
        records = read_metrics(part.work / "runs" / NAME / "metrics.jsonl")
        last = records[-1]
        losses = [record["val_loss"] for record in records if record.get("val_loss") is not None]
        part.add(
            what="train", seconds=time.monotonic() - begin, steps=last["step"], tokens=last.get("tokens"),
            val_loss=losses[-1] if losses else None, tokens_per_second=last.get("tokens_per_second"),
        )  # fmt: skip

    def export() -> None:
        begin = time.monotonic()
        adaptive(part, "export", NAME, "--target", "cuda", "--quantize", "fp16")
        part.add(what="export", seconds=time.monotonic() - begin)

    def generate() -> None:
        printed = adaptive(
            part, "generate", "A class template", "--model", f"runs/{NAME}/model", "--device", part.device,
            "--target", "cuda", "--max-new-tokens", "32", "--temperature", "0", "--json",
        )  # fmt: skip
        answer = json.loads(printed)
        part.add(what="generate", text=answer.get("text"), usage=answer.get("usage"))

    _ = part.attempt("training", train) and part.attempt("exporting", export) and part.attempt("generating", generate)


if __name__ == "__main__":
    main()
