"""Training speed beside peers of equal shape, and the cost of routing and of mixers: interleaved, in one process.

    python benchmarks/train_speed.py --size small --size medium
    python benchmarks/train_speed.py --size small --part mixers

Needs the extra `bench` (transformers). First, tokens per second of forward and backward with batch 12 x 64 and
vocabulary 65. Then, with batch 16 x 128, a mixture of experts beside the dense model that uses as many weights: forward
and backward, and whole steps (with clipping, optimizer and controllers). Last, with batch 2 x 1,024, whole steps of
models that differ in their mixers. Every ratio is taken within a round, so that a disturbance of the machine affects
both sides.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.model.losses import training_loss
from adaptive_lm.train.model.mixers.build import MIXERS
from adaptive_lm.train.model.output import ModelOutput
from adaptive_lm.train.model.transformer import Transformer
from adaptive_lm.train.optim.clipping import Clipping
from adaptive_lm.train.optim.optimizer import Optimizers
from adaptive_lm.train.system.device import autocast, choose_precision
from training.peers import PlainGPT, Shape, llama, mixtral

CPU = torch.device("cpu")
VOCABULARY = 65
PARTS = ("peers", "routing", "mixers")
SETTLING = 20
"""Batches shown to the controllers before anything is timed. A new model holds its average only after they settled: it
starts with 1.86 experts per token at 0.8M weights and 1.35 at 10.6M, where 1.6 are wanted."""


class Size(NamedTuple):
    """Widths of the models of a size; a token uses the same number of weights in all of them."""

    dim: int
    layers: int
    heads: int
    dense: int  # hidden width of a dense SwiGLU

    def shape(self, length: int) -> Shape:
        """Return the sizes that all models share, at a sequence length."""
        return Shape(VOCABULARY, length, self.dim, self.layers, self.heads)


SIZES = {"small": Size(128, 4, 4, 344), "medium": Size(384, 6, 6, 1024)}
"""0.8M and 10.6M weights in use: those of nanoGPT's recipes for a CPU and for a GPU."""

Step = Callable[[], None]
Seconds = dict[str, np.ndarray[Any, Any]]


class Contest:
    """Models that train on one batch (B, T); a step leaves no gradients behind."""

    def __init__(self, size: Size, batch: int, length: int, precision: str) -> None:
        self.size, self.shape, self.precision = size, size.shape(length), precision
        self.tokens = batch * length
        self.used = 1.0
        """Experts per token in the model built last, after its controllers have settled."""
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(VOCABULARY, (batch, length), generator=generator)
        self.targets = torch.randint(VOCABULARY, (batch, length), generator=generator)
        self.counted = torch.ones_like(self.ids, dtype=torch.bool)

    def step_of(self, model: nn.Module, loss: Callable[[], Tensor]) -> Step:
        """Return a step of forward and backward."""

        def step() -> None:
            with autocast(CPU, self.precision):
                value = loss()
            value.backward()  # type: ignore[no-untyped-call]  # torch's own
            model.zero_grad(set_to_none=True)

        return step

    def plain_gpt(self) -> Step:
        """Return a step of the plain GPT-2."""
        model = PlainGPT(self.shape)
        return self.step_of(
            model, lambda: F.cross_entropy(model(self.ids).flatten(0, 1).float(), self.targets.flatten())
        )

    def transformers(self, model: nn.Module) -> Step:
        """Return a step of a model of the transformers library."""
        return self.step_of(model, lambda: model(input_ids=self.ids, labels=self.ids).loss)

    def nanogpt(self, file: Path) -> Step:
        """Return a step of nanoGPT's own model.py, from the user's copy."""
        spec = importlib.util.spec_from_file_location("nanogpt_model", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt_model"] = module  # its dataclass looks itself up
        spec.loader.exec_module(module)
        shape = self.shape
        config = module.GPTConfig(shape.length, VOCABULARY, shape.layers, shape.heads, shape.dim, 0.0, False)
        model = module.GPT(config)
        return self.step_of(model, lambda: model(self.ids, self.targets)[1])

    def config(self, ffn: dict[str, Any], mixers: str = "attention") -> RunConfig:
        """Return the config of our model of this size."""
        _, length, dim, layers, heads = self.shape
        shape = {"vocab_size": VOCABULARY, "dim": dim, "num_layers": layers, "context_length": length}
        return make_config(
            {"model": {**shape, "num_heads": heads, "num_kv_heads": heads, "ffn": ffn, "mixers": mixers}}
        )

    def ours(self, ffn: dict[str, Any], compiled: bool, whole: bool = False, mixers: str = "attention") -> Step:
        """Return a step of our model; a `whole` one also clips, optimises and moves the controllers."""
        config = self.config(ffn, mixers)
        model = Transformer(config.model)
        with torch.no_grad(), autocast(CPU, self.precision):
            for _ in range(SETTLING):
                out = model(self.ids)
                model.observe(out, self.counted)
            self.used = float(model(self.ids).usage()["experts_per_token"])
        if compiled:
            model.compile_blocks()
        optimizers, clipping = Optimizers(model, config.optimizer), Clipping(config.optimizer)

        def loss() -> tuple[Tensor, ModelOutput]:
            out = model(self.ids)
            return training_loss(model, out, self.targets, self.counted, config.losses)[0], out

        def step() -> None:
            with autocast(CPU, self.precision):
                value, out = loss()
            value.backward()  # type: ignore[no-untyped-call]  # torch's own
            model.observe(out, self.counted)
            clipping.clip(optimizers.names.items())
            optimizers.step()
            optimizers.zero_grad()

        return step if whole else self.step_of(model, lambda: loss()[0])


def race(steps: dict[str, Step], rounds: int) -> Seconds:
    """Return the seconds of each step, (rounds,), after three that warm up, compile and settle the allocator."""
    for step in steps.values():
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            steps[name]()
            steps[name]()
            seconds[name].append((time.perf_counter() - started) / 2)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values: np.ndarray[Any, Any], form: str) -> str:
    """Format `median (p5 to p95)`."""
    low, middle, high = (format(value, form) for value in np.percentile(values, [5, 50, 95]))
    return f"{middle} ({low} to {high})"


def report(title: str, tokens: int, seconds: Seconds, ratios: list[tuple[str, str]]) -> None:
    """Print a table of speeds, and for each pair (one, other) the ratio of their times: medians with spread."""
    click.echo(f"\n{title}\n\n| | ms per step | tokens/s |\n|---|---|---|")
    for name, values in seconds.items():
        click.echo(f"| {name} | {spread(1000 * values, '.1f')} | {tokens / np.median(values):.0f} |")
    click.echo()
    for one, other in ratios:
        click.echo(f"{one} / {other}: {spread(seconds[one] / seconds[other], '.2f')}")


def against_peers(name: str, precision: str, rounds: int, nanogpt: Path | None) -> None:
    """Time forward and backward of ours and of peers, at the batch of their recipes."""
    size = SIZES[name]
    contest = Contest(size, 12, 64, precision)
    dense = {"routing": "dense", "dim": size.dense}
    top2 = {"routing": "top_k", "num_experts": 8, "experts_per_token": 2, "expert_dim": size.dense // 2}
    gpt, grouped = "nanoGPT's shape and loop", "transformers Mixtral, grouped_mm"
    steps = {
        gpt: contest.plain_gpt(),
        "transformers Llama": contest.transformers(llama(contest.shape, size.dense)),
        grouped: contest.transformers(mixtral(contest.shape, size.dense // 2, "grouped_mm")),
        "transformers Mixtral, eager": contest.transformers(mixtral(contest.shape, size.dense // 2, "eager")),
        "dense": contest.ours(dense, compiled=False),
        "dense, compiled": contest.ours(dense, compiled=True),
        "top-2 of 8": contest.ours(top2, compiled=False),
        "top-2 of 8, compiled": contest.ours(top2, compiled=True),
    }
    ratios = [(gpt, "dense"), (gpt, "dense, compiled"), (grouped, "top-2 of 8"), (grouped, "top-2 of 8, compiled")]
    if nanogpt is not None:
        steps["nanoGPT itself"] = contest.nanogpt(nanogpt)
        ratios.append(("nanoGPT itself", gpt))
    seconds = race(steps, rounds)
    report(f"{name}, {precision}, forward and backward of 12 x 64 tokens", contest.tokens, seconds, ratios)


def of_routing(name: str, precision: str, rounds: int) -> None:
    """Time experts beside the dense model that uses as many weights per token, at the batch of our recipes."""
    size = SIZES[name]
    contest = Contest(size, 16, 128, precision)
    dense = {"routing": "dense", "dim": size.dense}
    top_p = {"num_experts": 8, "experts_per_token": 1.6, "expert_dim": round(size.dense / 1.6)}
    for whole in (False, True):
        steps = {
            f"{kind}{mode}": contest.ours(ffn, compiled=bool(mode), whole=whole)
            for mode in ("", ", compiled")
            for kind, ffn in (("dense", dense), ("top-p", top_p))
        }
        what = "whole steps" if whole else "forward and backward"
        ratios = [(f"top-p{mode}", f"dense{mode}") for mode in ("", ", compiled")]
        title = f"{name}, {precision}, {what} of 16 x 128 tokens, top-p at {contest.used:.2f} experts per token"
        report(title, contest.tokens, race(steps, rounds), ratios)


def of_mixers(name: str, precision: str, rounds: int) -> None:
    """Time models of each mixer with a state beside one of attention, at a length where attention is long."""
    size = SIZES[name]
    contest = Contest(size, 2, 1024, precision)
    dense = {"routing": "dense", "dim": size.dense}
    for mode in ("", ", compiled"):
        steps = {
            f"{mixer}{mode}": contest.ours(dense, compiled=bool(mode), whole=True, mixers=mixer)
            for mixer in ("attention", *MIXERS)
        }
        title = f"{name}, {precision}, whole steps of 2 x 1024 tokens"
        report(title, contest.tokens, race(steps, rounds), [(f"attention{mode}", f"{one}{mode}") for one in MIXERS])


@click.command()
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), default=list(SIZES), show_default=True,
              help="Size to time; may be repeated.")  # fmt: skip
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, show_default=True,
              help="Part to time; may be repeated.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True,
              help="Precision of the products.")  # fmt: skip
@click.option("--rounds", default=15, show_default=True, help="Interleaved rounds of two steps each.")
@click.option("--threads", default=1, show_default=True, help="Threads of torch.")
@click.option("--nanogpt", type=click.Path(exists=True, path_type=Path), help="Path of nanoGPT's model.py, to time it.")
def main(
    sizes: tuple[str, ...], parts: tuple[str, ...], precision: str, rounds: int, threads: int, nanogpt: Path | None
) -> None:
    """Print tokens per second of ours and of peers, and the ratios."""
    torch.set_num_threads(threads)
    precision = choose_precision(precision, CPU)
    for name in sizes:
        if "peers" in parts:
            against_peers(name, precision, rounds, nanogpt)
        if "routing" in parts:
            of_routing(name, precision, rounds)
        if "mixers" in parts:
            of_mixers(name, precision, rounds)


if __name__ == "__main__":
    main()
