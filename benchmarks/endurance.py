"""Generate many tokens with two targets of one model: memory must stay flat, and every decision must be equal.

Both targets read the same tokens, those that the first one chooses. A token whose decisions differ ends the comparison
of its sequence, since what follows was computed from other states; the margins of the torch model, which tell a near
tie from an error, are what `adaptive export` compares, so here each such token is only counted.
"""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.manifest import Manifest

MIB = 2**20
PROMPT = 8
"""Random tokens that begin each sequence."""


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tokens", type=click.IntRange(min=1), default=100_000, show_default=True, help="Tokens to generate.")
@click.option("--targets", type=(str, str), default=("cpu", "portable"), show_default=True, help="Targets to compare.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(model: Path, tokens: int, targets: tuple[str, str], as_json: bool) -> None:
    """Generate with MODEL, the folder of an export that has both targets."""
    manifest = Manifest.read(model)
    sessions = [Session(model, manifest, device="cpu", target=target, threads=1, verify=False) for target in targets]
    begun = [session.sequence() for session in sessions]
    random, process = np.random.default_rng(0), psutil.Process()
    length = manifest.model.context_length
    done = compared = sequences = flipped = other_tokens = 0
    memory: list[float] = []
    while done < tokens:
        prompt = random.integers(manifest.model.tokenizer_size, size=min(PROMPT, length - 1)).tolist()
        for sequence in begun:
            sequence.rewind(0)
        steps = [sequence.prefill(prompt) for sequence in begun]
        equal = True
        sequences += 1
        for _ in range(length - len(prompt)):
            token = drawn(steps[0].logits[-1], manifest.model.tokenizer_size, random)
            steps = [sequence.step(token) for sequence in begun]
            done += 1
            if equal:
                compared += 1
                equal = same_routes(steps[0].routes, steps[1].routes)
                flipped += not equal
                if equal:
                    other_tokens += int(steps[0].logits[-1].argmax() != steps[1].logits[-1].argmax())
        memory.append(process.memory_info().rss / MIB)
        click.echo(f"{done:,} tokens, {memory[-1]:.0f} MiB, {flipped} sequences with another decision", err=True)
    tenth = max(len(memory) // 10, 1)
    result = {
        "tokens": done,
        "sequences": sequences,
        "compared": compared,
        "tokens_with_another_decision": flipped,
        "other_most_probable_token": other_tokens,
        "memory_mib_after_a_tenth": round(memory[tenth - 1], 1),
        "memory_mib_at_the_end": round(memory[-1], 1),
    }
    if as_json:
        click.echo(json.dumps(result))
    else:
        for name, value in result.items():
            click.echo(f"{name.replace('_', ' '):32} {value:,}")


def drawn(logits: Any, size: int, random: np.random.Generator) -> int:
    """Sample a token at temperature 1 from logits (V,)."""
    gumbel = random.gumbel(size=size)
    return int((logits[:size] + gumbel).argmax())


def same_routes(one: Any, other: Any) -> bool:
    """Return whether all decisions of two passes are equal."""
    names = ("selected_experts", "selected_heads", "layers_run", "exit_layer", "windows")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


if __name__ == "__main__":
    main()
