"""Speed with drafts beside plain decoding, on texts that repeat and on texts that do not.

    python benchmarks/speculation.py --precision int8

The model is moe-57m with random weights, which would write no text worth guessing. So it is made to write given texts:
a sampler returns their tokens, whatever the logits. What is guessed right is then that of the text, and a pass costs
what it costs. Both ways decode the same text in turns of a few tokens, on one thread, in thread CPU time.

With `--equal` the model's own greedy text is generated both ways instead, and must be the same to the last token.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

from adaptive_lm.runtime import Engine, Params, Token, load
from adaptive_lm.runtime.measuring.machine import cpu_name
from adaptive_lm.runtime.measuring.timing import Distribution, no_collection
from adaptive_lm.runtime.speculation.speculation import Speculate
from models.random_weights import SIZES, Precision
from texts.kinds import TEXTS, pages_of
from texts.writer import exports, ids_of

TURN = 32
"""Tokens that each way decodes before the other one does."""
WARM_UP = 64
"""Tokens of a text that are not timed."""


class Replay:
    """A sampler that returns the tokens of a given text."""

    seed = 0

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = iter(ids)

    def choose(self, logits: object) -> int:
        """Return the next token, whatever the logits."""
        return next(self._ids)


@click.command()
@click.option("--precision", "precisions", type=click.Choice(get_args(Precision)), multiple=True, default=("int8",),
              show_default=True, help="Precision of the weights; repeat for several.")  # fmt: skip
@click.option("--size", type=click.Choice(sorted(SIZES)), default="moe-57m", show_default=True, help="Model.")
@click.option("--drafter", type=click.Choice(["ngram", "dial"]), default="ngram", show_default=True)
@click.option("--text", "more", type=click.Path(exists=True, dir_okay=False, path_type=Path), multiple=True,
              help="Further text: JSON lines with `text`, or a plain file.")  # fmt: skip
@click.option("--texts", "count", type=click.IntRange(1), default=5, show_default=True, help="Texts of each kind.")
@click.option("--tokens", type=click.IntRange(WARM_UP + 1), default=800, show_default=True, help="Tokens of each text.")
@click.option("--equal", type=click.IntRange(1), help="Compare this number of greedy tokens instead.")
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="An exported model with the target cpu, in place of one of random weights.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    precisions: tuple[Precision, ...], size: str, drafter: Speculate, more: tuple[Path, ...], count: int, tokens: int,
    equal: int | None, model: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Print tokens per second with drafts over those without: median, 5th and 95th percentile over the texts."""
    results = []
    with tempfile.TemporaryDirectory() as work:
        for folder in [model] if model else exports(Path(work), size, precisions):
            plain, drafting = (load(folder, device="cpu", target="cpu", threads=1, verify=False) for _ in range(2))
            if equal:
                results.append(compared(plain, drafting, drafter, equal) | {"model": folder.name})
            else:
                kinds = TEXTS | {path.stem: pages_of(path) for path in more}
                pairs = {name: [ids_of(plain, text, tokens) for text in make(count)] for name, make in kinds.items()}
                if model:
                    pairs["its own text"] = own_texts(plain, count, tokens)
                for name, texts in pairs.items():
                    results.append(measured(plain, drafting, drafter, texts))
                    results[-1] |= {"model": folder.name, "text": name}
                    if not as_json:
                        click.echo(line_of(results[-1]))
    if as_json:
        click.echo(json.dumps({"cpu": cpu_name(), "results": results}))
    elif equal:
        for result in results:
            click.echo(
                f"{result['model']}: {result['equal']} of {result['tokens']} tokens are equal, {drafts_of(result)}"
            )
    if equal and any(result["equal"] != result["tokens"] for result in results):
        sys.exit(1)


def ways_of(plain: Engine, drafting: Engine, drafter: Speculate) -> list[tuple[Engine, Speculate]]:
    """Return both ways to decode, each with its engine."""
    return [(plain, "off"), (drafting, drafter)]


def own_texts(engine: Engine, count: int, tokens: int) -> list[tuple[list[int], list[int]]]:
    """Return prompts, and what the model answers greedily."""
    texts = []
    for prompt, answer in (ids_of(engine, text, tokens) for text in TEXTS["documentation"](count)):
        params = Params(temperature=0, speculate="off", max_new_tokens=len(answer))
        texts.append((prompt, [token.id for token in engine.generate(prompt, params)]))
    return texts


def measured(
    plain: Engine, drafting: Engine, drafter: Speculate, texts: Sequence[tuple[list[int], list[int]]]
) -> dict[str, Any]:
    """Decode each text both ways in turns."""
    ratios, drafted, accepted, new = [], 0, 0, 0
    for prompt, answer in texts:
        ways = [
            engine.generate(prompt, Params(speculate=way, max_new_tokens=len(answer)), sampler=Replay(answer))
            for engine, way in ways_of(plain, drafting, drafter)
        ]
        seconds, written = np.zeros(2), [list[Token](), list[Token]()]
        with no_collection():
            for turn, begin in enumerate(range(0, len(answer), TURN)):
                for way in (0, 1) if turn % 2 else (1, 0):
                    part = min(TURN, len(answer) - begin)
                    took = time.thread_time()
                    written[way] += [next(ways[way]) for _ in range(part)]
                    if begin >= WARM_UP:
                        seconds[way] += time.thread_time() - took
        ratios.append(seconds[0] / seconds[1])
        drafted, accepted, new = (
            drafted + ways[1].request.drafted,
            accepted + ways[1].request.accepted,
            new + len(answer),
        )
        if [token.id for token in written[1]] != answer:
            raise RuntimeError("the text with drafts is not the text that was given")
    return {"speed": vars(Distribution.of(ratios)), "tokens": new, "drafted": drafted, "accepted": accepted}


def compared(plain: Engine, drafting: Engine, drafter: Speculate, tokens: int) -> dict[str, Any]:
    """Generate greedy texts both ways, and count the tokens that are equal and have equal usage."""
    equal = done = drafted = accepted = 0
    starts = cycle(text.prompt for make in TEXTS.values() for text in make(40))
    while done < tokens:
        context = plain.manifest.model.context_length
        prompt = plain.tokenizer.encode(next(starts))[-min(200, context // 4) :]
        new = min(tokens - done, context - len(prompt), 1000)
        texts = []
        for engine, way in ways_of(plain, drafting, drafter):
            generation = engine.generate(prompt, Params(temperature=0, speculate=way, max_new_tokens=new))
            texts.append([(token.id, token.text, token.usage) for token in generation])
            drafted, accepted = drafted + generation.request.drafted, accepted + generation.request.accepted
        equal += sum(one == other for one, other in zip(*texts, strict=True))
        done += len(texts[0])
    return {"tokens": done, "equal": equal, "drafted": drafted, "accepted": accepted}


def line_of(result: dict[str, Any]) -> str:
    """Write one row of the table."""
    speed = result["speed"]
    return (
        f"{result['model']:14} {result['text']:14} {speed['median']:5.2f} x ({speed['p5']:.2f} to {speed['p95']:.2f})  "
        f"{drafts_of(result)}"
    )


def drafts_of(result: dict[str, Any]) -> str:
    """Write how much was drafted."""
    return f"{result['drafted']} drafted, {result['accepted']} right, {result['tokens']} tokens"


if __name__ == "__main__":
    main()
