"""Our models of the comparison of small models: trained by the command line, scored and timed on ONNX Runtime."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_lm.runtime import Dial, Engine, load
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.execution.memory.kv_cache import cache_bytes
from adaptive_lm.runtime.execution.memory.states import state_bytes
from adaptive_lm.runtime.measuring.quality.given_text import read_text
from adaptive_lm.runtime.measuring.quality.perplexity import score, windows
from processes.command import adaptive, settings

LENGTH = 256
"""Tokens of a training sequence."""
LONGEST = 8192
"""Longest context that is timed."""
ROOM = LONGEST + 64
"""Context of the models that are timed: the longest one, and the tokens decoded after it."""
BASE: dict[str, Any] = {
    "model.context_length": LENGTH,
    "trainer.batch_size": 16,
    "trainer.threads": 1,
    "trainer.tensorboard": False,
    "trainer.eval_every": 100_000,
    "trainer.final_eval_tokens": 1,
}
DENSE = {"model.ffn.routing": "dense"}
HYBRID = {"model.mixers": ["mamba2", "mamba2", "mamba2", "attention"]}
OURS: Mapping[str, Mapping[str, Any]] = {
    "dense": DENSE,
    "top-p experts": {},
    "full (experts, heads, depth, exits)": {
        "model.heads.routing": "top_p",
        "model.heads.shared_heads": 1,
        "model.heads.heads_per_token": 3,
        "model.depth.layers_share": 0.75,
        "model.depth.exit_layers": [1, 2],
    },
    "dense, Mamba-2": DENSE | {"model.mixers": "mamba2"},
    "dense, RWKV-7": DENSE | {"model.mixers": "rwkv7"},
    "dense, RetNet": DENSE | {"model.mixers": "retnet"},
    "dense, gated delta": DENSE | {"model.mixers": "gated_delta"},
    "experts, Mamba-2 and attention": HYBRID,
    "experts and depth, Mamba-2 and attention": HYBRID | {"model.depth.layers_share": 0.75},
}
"""Settings over BASE: 4 layers of width 128, with a hidden width of 344 in use by a token."""


@dataclass
class Scored:
    """A model of ours after its training."""

    steps: int
    bits_per_byte: float
    megaflops: float
    """Executed per token of the held-out text."""


def run_name(kind: str, seed: int) -> str:
    """Return the name of a run."""
    word = "".join(letter if letter.isalnum() else "-" for letter in kind.lower())
    return f"{'-'.join(part for part in word.split('-') if part)}-{seed}"


def train(folder: Path, text: Path, kind: str, seed: int, seconds: float, vocabulary: int, core: int | None) -> None:
    """Train and export a model, unless that is done already; and a copy of it with a longer context, to be timed."""
    name = run_name(kind, seed)
    if (folder / "runs" / f"{name}-long" / "model" / "manifest.json").exists():
        return
    shape = settings(BASE | dict(OURS[kind]))
    ends = ["--max-seconds", str(seconds), "--seed", str(seed), "--name", name, "--overwrite"]
    tokenizer = ["--tokenizer", "bpe", "--vocab-size", str(vocabulary)]
    adaptive("train", "--data", str(text), *tokenizer, *ends, *shape, folder=folder, core=core)
    adaptive("export", name, "--onnx", "--threads", "1", folder=folder, core=core)
    # One step at a rate of almost 0: the weights stay what they are, and the context is that of the long texts.
    still = {f"optimizer.{rate}": 1e-12 for rate in ("lr", "adamw_lr", "adamw_matrix_lr")}
    longer = settings({"model.context_length": ROOM, "trainer.batch_size": 1, **still})
    ends = ["--steps", "1", "--name", f"{name}-long", "--overwrite"]
    adaptive("train", "--from", name, "--data", str(text), *ends, *longer, folder=folder, core=core)
    adaptive("export", f"{name}-long", "--onnx", "--threads", "1", folder=folder, core=core)


def open_model(folder: Path, name: str) -> Engine:
    """Load the exported model of a run."""
    return load(folder / "runs" / name / "model", device="cpu", threads=1)


def score_model(folder: Path, kind: str, seed: int, heldout: Path) -> Scored:
    """Score a model on the held-out text, in windows of the training context."""
    name = run_name(kind, seed)
    engine = open_model(folder, name)
    text, _ = read_text(engine, heldout, folder / "runs" / name, "--data")
    scored = score(engine, resolve(engine.manifest, Dial()), windows(text, len(text.ids), LENGTH))
    last = json.loads((folder / "runs" / name / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    return Scored(last["step"], scored.bits_per_byte, scored.tally.executed_flops / scored.tally.tokens / 1e6)


class OurDecoder:
    """A model of ours that decodes token by token after a context."""

    def __init__(self, folder: Path, kind: str, seed: int) -> None:
        self.engine = open_model(folder, f"{run_name(kind, seed)}-long")
        self.limits = resolve(self.engine.manifest, Dial())
        self.ids = np.random.default_rng(0).integers(self.engine.manifest.model.tokenizer_size, size=LONGEST).tolist()

    def milliseconds(self, context: int, tokens: int, clock: Callable[[], float]) -> float:
        """Return the median milliseconds of CPU of a token after a context."""
        room = context + tokens + 1
        sequence = self.engine.session.sequence(self.limits, room)
        sequence.prefill(self.ids[:context], num_logits=1)
        sequence.step(self.ids[0])
        times = []
        for token in self.ids[:tokens]:
            began = clock()
            sequence.step(token)
            times.append(clock() - began)
        return float(np.median(times)) * 1000

    def memory(self, context: int) -> int:
        """Return the bytes of caches and states for a context."""
        model = self.engine.manifest.model
        return int(cache_bytes(model, context) + state_bytes(model))
