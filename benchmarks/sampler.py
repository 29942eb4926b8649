"""Time of the choice of one token, by what is asked of the sampler.

    python benchmarks/sampler.py

Each round times every setting once, in a new order. Logits are drawn from a normal distribution: `peaked` with a
deviation of 2.5, like those of a trained model, `flat` with 0.001, so that nearly every token is in the nucleus.
"""

import json
import time
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from adaptive_lm.runtime.generation.sampling.sampler import Sampler, Sampling
from adaptive_lm.runtime.measuring.machine import cpu_name
from adaptive_lm.runtime.measuring.timing import Distribution, no_collection

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {},
    "top_k=40": {"top_k": 40},
    "top_k=16000": {"top_k": 16000},
    "top_p=0.9": {"top_p": 0.9},
    "top_p=0.1": {"top_p": 0.1},
    "min_p=0.05": {"min_p": 0.05},
    "repetition_penalty=1.1": {"repetition_penalty": 1.1},
    "text penalties": {"frequency_penalty": 0.5, "presence_penalty": 0.5},
    "300 biases": {"logit_bias": dict.fromkeys(range(300), 1.0)},
    "mask, all allowed": {},
    "mask, half allowed": {},
    "mask, few allowed": {},
    "all together": {"top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1},
}
ALLOWED: dict[str, float] = {"mask, all allowed": 1.0, "mask, half allowed": 0.5, "mask, few allowed": 2e-4}
"""Share of the tokens that the mask allows."""
DEVIATIONS = {"peaked": 2.5, "flat": 1e-3}
SEEN = 512
WARM_UP = 20
VARIANTS = 16  # of the logits


class FixedMask:
    """A mask that always allows the same tokens."""

    ended = False

    def __init__(self, vocab_size: int, share: float) -> None:
        bits = np.random.default_rng(1).random(32 * (vocab_size // 32 + 1)) < share
        bits[0] = True
        self._words = np.packbits(bits, bitorder="little").view(np.uint32)

    def allowed(self) -> NDArray[np.uint32]:
        """Return the bits."""
        return self._words

    def accept(self, token: int) -> None:
        """Take any token."""


@click.command()
@click.option("--vocab-size", type=click.IntRange(min=1), default=32000, show_default=True, help="Number of tokens.")
@click.option("--rounds", type=click.IntRange(min=1), default=500, show_default=True, help="Tokens to time of each.")
@click.option("--portable", is_flag=True, help="Time the draw with numpy, as where no compiler was.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(vocab_size: int, rounds: int, portable: bool, as_json: bool) -> None:
    """Print microseconds per token: median, 5th and 95th percentile, and the median of the thread's CPU time."""
    result = measure(vocab_size, rounds, compiled=not portable)
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{cpu_name()}, {vocab_size} tokens, {'compiled' if result['compiled'] else 'numpy'}")
    click.echo(f"{'logits':7} {'setting':24} {'median':>8} {'p5':>8} {'p95':>8} {'CPU':>8}  us per token")
    for row in result["settings"]:
        wall, cpu = row["microseconds"], row["cpu_microseconds"]
        click.echo(
            f"{row['logits']:7} {row['name']:24} {wall['median']:8.1f} {wall['p5']:8.1f} {wall['p95']:8.1f} "
            f"{cpu['median']:8.1f}"
        )


def measure(vocab_size: int, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Return the figures of every setting on every kind of logits."""
    random = np.random.default_rng(0)
    logits = {
        name: (random.normal(size=(VARIANTS, vocab_size)) * deviation).astype(np.float32)
        for name, deviation in DEVIATIONS.items()
    }
    cases = [(kind, name) for kind in DEVIATIONS for name in SETTINGS]
    prompt = list(range(min(SEEN, vocab_size)))
    masks = {name: FixedMask(vocab_size, share) for name, share in ALLOWED.items()}
    samplers = [
        Sampler(Sampling(seed=1, **SETTINGS[name]), vocab_size, prompt, mask=masks.get(name), compiled=compiled)
        for _, name in cases
    ]
    times = np.zeros((2, len(cases), rounds))
    with no_collection():
        for turn in range(-WARM_UP, rounds):
            for index in random.permutation(len(cases)):
                took = timed(samplers[index], logits[cases[index][0]][turn % VARIANTS])
                if turn >= 0:
                    times[:, index, turn] = took
    return {
        "cpu": cpu_name(),
        "vocab_size": vocab_size,
        "rounds": rounds,
        "compiled": samplers[-1].compiled,
        "settings": [
            {"logits": kind, "name": name, "microseconds": summary(wall), "cpu_microseconds": summary(cpu)}
            for (kind, name), wall, cpu in zip(cases, *times, strict=True)
        ],
    }


def timed(sampler: Sampler, logits: NDArray[np.float32]) -> tuple[float, float]:
    """Return the microseconds of one choice: of the clock, and of the thread."""
    cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
    sampler.choose(logits)
    wall, cpu = time.perf_counter_ns() - wall, time.thread_time_ns() - cpu
    return wall / 1000, cpu / 1000


def summary(values: NDArray[np.float64]) -> dict[str, float]:
    """Return median and spread."""
    distribution = Distribution.of(values)
    return {name: round(value, 2) for name, value in vars(distribution).items()}


if __name__ == "__main__":
    main()
