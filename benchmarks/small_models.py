"""Small language models side by side: ours, and the architectures of others as their own libraries build them.

    make bench-small-models
    .venv/bin/python benchmarks/small_models.py --seconds 144 --seeds 2

All train on the same text with the same tokenizer for the same seconds of one core: ours by `adaptive train` with its
own recipe, the others by AdamW (architectures/peers.py). Each is scored on the same held-out bytes. Then all decode in
alternation on one thread, after contexts of 128 to 8,192 tokens: ours exported, on ONNX Runtime, the others in torch
with their own caches. Last, the real SmolLM2-135M is scored on the same bytes, where `make demo-chat` has imported it.
Needs the extra `bench`. The work folder keeps what is trained; the same command goes on where it was stopped.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import click
import numpy as np
import torch
from tokenizers import Tokenizer

from adaptive_lm.runtime import Dial
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.measuring.machine import cpu_name
from adaptive_lm.runtime.measuring.quality.given_text import read_text
from adaptive_lm.runtime.measuring.quality.perplexity import score, windows
from architectures.ours import LENGTH, LONGEST, OURS, OurDecoder, open_model, run_name, score_model, train
from architectures.peers import PEERS, Decoder, train_peer
from architectures.report import Line, draw, markdown
from page.section import replace_section
from training.peers import Shape

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "cpp-docs" / "pages.jsonl"
CONTEXTS = (128, 512, 2048, LONGEST)
SMOLLM = ROOT / "runs" / "smollm2" / "model"
VOCABULARY = 2048
HELD_OUT = 400_000
"""Characters of the held-out text."""
TOKENS = 24
"""Timed tokens of a turn."""


@dataclass(frozen=True)
class Texts:
    """A text in two parts, as files."""

    train: Path
    heldout: Path


class Decoding(Protocol):
    """An open model that decodes token by token."""

    def milliseconds(self, context: int, tokens: int, clock: Callable[[], float]) -> float:
        """Return the median milliseconds of a token after a context, by a clock in seconds."""

    def memory(self, context: int) -> int:
        """Return the bytes of caches and states after a context."""


def split(data: Path, folder: Path, characters: int) -> Texts:
    """Write the beginning of a text as training text and its end as held-out text, unless they are there."""
    texts = Texts(folder / "train.txt", folder / "heldout.txt")
    if not texts.heldout.exists():
        whole = data.read_text("utf-8")
        if data.suffix == ".jsonl":
            whole = "\n\n".join(json.loads(line)["text"] for line in whole.splitlines() if line.strip())
        held = min(HELD_OUT, len(whole) // 10)
        texts.train.write_text(whole[: min(characters, len(whole) - held)], "utf-8")
        texts.heldout.write_text(whole[-held:], "utf-8")
    return texts


class Comparison:
    """The models, trained and kept in a work folder."""

    def __init__(self, folder: Path, data: Path, seconds: float, core: int | None, characters: int) -> None:
        self.folder, self.seconds, self.core = folder, seconds, core
        folder.mkdir(parents=True, exist_ok=True)
        self.texts = split(data, folder, characters)

    def ours(self, kind: str, seed: int) -> Line:
        """Train and score a model of ours."""
        train(self.folder, self.texts.train, kind, seed, self.seconds, VOCABULARY, self.core)
        scored = score_model(self.folder, kind, seed, self.texts.heldout)
        return Line(kind, seed, scored.steps, scored.bits_per_byte, scored.megaflops, ours=True)

    def peer(self, name: str, seed: int) -> Line:
        """Train and score a model of another library; its weights are kept."""
        path = self.folder / f"{run_name(name, seed)}.json"
        weights = path.with_suffix(".pt")
        if not path.exists():
            tokenizer = self.tokenizer()
            shape = Shape(tokenizer.get_vocab_size(), LENGTH, 128, 4, 4)
            train_text, heldout = (one.read_text("utf-8") for one in (self.texts.train, self.texts.heldout))
            trained = train_peer(name, shape, train_text, tokenizer, heldout, seed, self.seconds)
            torch.save(trained.model.state_dict(), weights)
            values = {"steps": trained.steps, "bits_per_byte": trained.bits_per_byte, "megaflops": trained.megaflops}
            path.write_text(json.dumps(values), "utf-8")
        values = json.loads(path.read_text("utf-8"))
        return Line(name, seed, values["steps"], values["bits_per_byte"], values["megaflops"], ours=False)

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of our first model, which all share."""
        first = self.folder / "runs" / run_name(next(iter(OURS)), 0) / "tokenizer.json"
        return Tokenizer.from_file(str(first))

    def decoder(self, peer: str) -> Decoder:
        """Open a peer with the weights of its first seed."""
        tokenizer = self.tokenizer()
        shape = Shape(tokenizer.get_vocab_size(), LENGTH, 128, 4, 4)
        model = PEERS[peer].build(shape)
        model.load_state_dict(torch.load(self.folder / f"{run_name(peer, 0)}.pt", weights_only=True))
        return Decoder(PEERS[peer], model.eval(), shape.vocabulary)


def time_all(comparison: Comparison, lines: list[Line], rounds: int, contexts: tuple[int, ...]) -> None:
    """Time a token after each context, everyone in each round, in another order each time; write it into `lines`."""
    firsts = [line for line in lines if line.seed == 0]
    open_: dict[str, Decoding] = {}
    for line in firsts:
        if line.ours:
            open_[line.kind] = OurDecoder(comparison.folder, line.kind, 0)
        elif PEERS[line.kind].past:
            open_[line.kind] = comparison.decoder(line.kind)
    order = np.random.default_rng(0)
    for context in contexts:
        times: dict[str, list[float]] = {kind: [] for kind in open_}
        for _ in range(rounds):
            for place in order.permutation(len(open_)):
                kind = list(open_)[place]
                times[kind].append(open_[kind].milliseconds(context, TOKENS, time.thread_time))
        for line in firsts:
            if line.kind in open_:
                line.milliseconds[context] = times[line.kind]
                line.memory[context] = open_[line.kind].memory(context)
        click.echo(f"timed everyone after {context} tokens", err=True)


def score_smollm(heldout: Path) -> float | None:
    """Return the bits per byte of the real SmolLM2-135M on the held-out text; None where it is not there."""
    if not (SMOLLM / "manifest.json").exists():
        click.echo("SmolLM2-135M is not there, so it is left out; to include it, type: make demo-chat", err=True)
        return None
    engine = open_model(SMOLLM.parent.parent.parent, SMOLLM.parent.name)
    text, _ = read_text(engine, heldout, SMOLLM.parent, "--data")
    return score(engine, resolve(engine.manifest, Dial()), windows(text, min(len(text.ids), 16384), 1024)).bits_per_byte


@click.command()
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=DATA,
              help="Text, or JSON lines with a field `text`; by default the C++ documentation.")  # fmt: skip
@click.option("--seconds", default=144.0, show_default=True, help="Training time of each model, on one core.")
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True, help="Runs of each model.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds of turns that are timed.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice([*OURS, *PEERS]), default=[*OURS, *PEERS],
              help="Model to compare; may be repeated; by default all.")  # fmt: skip
@click.option("--context", "contexts", multiple=True, type=click.IntRange(1, LONGEST), default=CONTEXTS,
              help="Context after which a token is timed; may be repeated.")  # fmt: skip
@click.option("--characters", default=20_000_000, show_default=True, help="Most characters to train on.")
@click.option("--core", type=click.IntRange(min=0), help="Core to pin everything to; by default none.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "runs" / "bench-small-models",
              help="Folder for models and results; by default runs/bench-small-models.")  # fmt: skip
@click.option("--write/--no-write", default=False, help="Replace the section of docs/benchmarks.md and its plot.")
def main(
    data: Path, seconds: float, seeds: int, rounds: int, kinds: tuple[str, ...], contexts: tuple[int, ...],
    characters: int, core: int | None, work: Path, write: bool,
) -> None:  # fmt: skip
    """Train, score and time everyone, and print the table."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
    comparison = Comparison(work.resolve(), data.resolve(), seconds, core, characters)
    first = next(iter(OURS))
    wanted = [kind for kind in (*OURS, *PEERS) if kind in kinds or kind == first]  # the first has the tokenizer
    lines: list[Line] = []
    for seed in range(seeds):
        for kind in wanted:
            line = comparison.ours(kind, seed) if kind in OURS else comparison.peer(kind, seed)
            click.echo(
                f"{kind}, seed {seed}: {line.bits_per_byte:.4f} bits per byte after {line.steps} steps", err=True
            )
            lines.append(line)
    time_all(comparison, lines, rounds, contexts)
    heading = (
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, one thread; {data.name}, {seconds:g} s of training each, {seeds} "
        f"seeds, sequences of {LENGTH}, vocabulary {VOCABULARY}"
    )
    text = markdown(lines, contexts, heading, score_smollm(comparison.texts.heldout))
    click.echo(text)
    if write:
        draw(lines, contexts, ROOT / "docs" / "figures" / "small-models.png", heading)
        replace_section(ROOT / "docs" / "benchmarks.md", "small-models", text)


if __name__ == "__main__":
    sys.exit(main())
