"""What a beam search costs and gains beside greedy decoding, with fixed and with adaptive width.

    python benchmarks/search.py --model runs/demo/model
    python benchmarks/search.py --size moe-57m            # the cost alone: its weights are random

Every prompt is continued greedily and by each search, in turns, on one thread, in thread CPU time. The cost is the time
over that of greedy decoding; the gain is the log-probability of the best text above that of the greedy one, in nats.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

from adaptive_lm.runtime import Engine, Params, load
from adaptive_lm.runtime.measuring.machine import cpu_name
from adaptive_lm.runtime.measuring.timing import Distribution, no_collection
from models.random_weights import SIZES, Precision
from texts.kinds import TEXTS
from texts.writer import exports, ids_of

Search = tuple[int, float | None]
"""Beams and margin."""
SEARCHES: tuple[Search, ...] = (
    (1, None), (2, None), (4, None), (8, None), (4, 0.5), (4, 1.0), (4, 2.0), (8, 1.0), (8, 2.0), (8, 4.0),
)  # fmt: skip


@click.command()
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="An exported model, in place of one of random weights.")  # fmt: skip
@click.option("--size", type=click.Choice(sorted(SIZES)), default="moe-57m", show_default=True, help="Model.")
@click.option("--precision", type=click.Choice(get_args(Precision)), default="int8", show_default=True)
@click.option("--prompts", "count", type=click.IntRange(2), default=8, show_default=True, help="Prompts.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Take the prompts from this text, in place of made-up documentation.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="New tokens of each text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    model: Path | None, size: str, precision: Precision, count: int, text: Path | None, tokens: int, as_json: bool
) -> None:
    """Print the cost and the gain of each search: medians, and 5th and 95th percentile over the prompts."""
    with tempfile.TemporaryDirectory() as work:
        folder = model or next(exports(Path(work), size, [precision]))
        engine = load(folder, device="cpu", threads=1, verify=False)
    prompts = prompts_of(engine, text, count, tokens)
    results = measured(engine, prompts, tokens)
    if as_json:
        click.echo(json.dumps({"cpu": cpu_name(), "model": str(folder.name), "results": results}))
        return
    click.echo(
        f"{cpu_name()}, target {engine.session.target}, {count} prompts, {tokens} new tokens, "
        f"greedy texts have {results[0]['greedy']:.1f} nats"
    )
    for one in results:
        name = f"{one['beams']} beams" + ("" if one["margin"] is None else f", margin {one['margin']}")
        cost = f"cost {one['cost']['median']:5.2f} ({one['cost']['p5']:.2f} to {one['cost']['p95']:.2f})"
        gain = f"gain {one['gain']:6.2f} nats a text ({one['gain_error']:.2f})"
        click.echo(f"{name:20} {one['width']:5.2f} wide  {cost}  {gain}, {one['better']} better, {one['worse']} worse")


def prompts_of(engine: Engine, text: Path | None, count: int, tokens: int) -> list[list[int]]:
    """Return the ids of prompts that leave room for the new tokens."""
    room = engine.manifest.model.context_length - tokens
    if text is None:
        return [ids_of(engine, one, tokens)[0][-min(room, 100) :] for one in TEXTS["documentation"](count)]
    ids = engine.tokenizer.encode(text.read_text(encoding="utf-8"))
    length = min(room, 32)
    return [ids[begin : begin + length] for begin in np.linspace(0, len(ids) - length, count).astype(int)]


def measured(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> list[dict[str, Any]]:
    """Run every search after every prompt, with greedy decoding before each."""
    plain = Params(temperature=0, max_new_tokens=tokens, speculate="off")
    own = Params(max_new_tokens=tokens)
    costs: dict[Search, list[float]] = {one: [] for one in SEARCHES}
    gains: dict[Search, list[float]] = {one: [] for one in SEARCHES}
    widths: dict[Search, list[float]] = {one: [] for one in SEARCHES}
    greedy: list[float] = []
    list(engine.generate(prompts[0], plain))
    with no_collection():
        for prompt in prompts:
            base = engine.search(prompt, own, beams=1)
            list(base)
            greedy.append(base.found.best.logprob)
            for beams, margin in SEARCHES:
                begin = time.thread_time()
                list(engine.generate(prompt, plain))
                middle = time.thread_time()
                search = engine.search(prompt, own, beams=beams, beam_margin=margin, length_penalty=0)
                list(search)
                took = time.thread_time() - middle
                found = search.found
                per_token = took / found.effort.steps / ((middle - begin) / len(base.found.best.tokens))
                costs[beams, margin].append(per_token)
                gains[beams, margin].append(found.best.logprob - base.found.best.logprob)
                widths[beams, margin].append(found.effort.tokens / found.effort.steps)
    return [
        {
            "beams": beams,
            "margin": margin,
            "greedy": float(np.mean(greedy)),
            "width": float(np.mean(widths[beams, margin])),
            "cost": vars(Distribution.of(costs[beams, margin])),
            "gain": float(np.mean(gains[beams, margin])),
            "gain_error": float(np.std(gains[beams, margin]) / len(prompts) ** 0.5),
            "better": sum(gain > 1e-9 for gain in gains[beams, margin]),
            "worse": sum(gain < -1e-9 for gain in gains[beams, margin]),
        }
        for beams, margin in SEARCHES
    ]


if __name__ == "__main__":
    main()
