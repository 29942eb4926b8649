"""Training steps per second against peers at equal shapes, and what routing costs: interleaved, in one process.

    python benchmarks/train_speed.py --size small --size medium

needs the extra `bench` (transformers). Tokens per second of forward and backward, batch 12 x 64, vocabulary 65; and of
whole steps of ours (clipping, optimizer and controllers with them) for a mixture of experts against its dense twin.
Every ratio is taken within a round, so what a neighbour on the machine does to one does it to the other.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_lm.train.clipping import Clipping
from adaptive_lm.train.config import RunConfig, make_config
from adaptive_lm.train.device import autocast, choose_precision
from adaptive_lm.train.model.losses import training_loss
from adaptive_lm.train.model.transformer import Transformer
from adaptive_lm.train.optimizer import Optimizers

BATCH, LENGTH, VOCABULARY = 12, 64, 65
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """What all models of a size share; weights that a token uses are the same for all of them."""

    dim: int
    layers: int
    heads: int
    dense: int  # hidden width of a dense SwiGLU

    @property
    def top2(self) -> int:
        """Hidden width of an expert, of which a token takes two."""
        return self.dense // 2

    @property
    def top_p(self) -> int:
        """Hidden width of an expert, of which a token takes 1.6 on average."""
        return round(self.dense / 1.6)


SIZES = {"small": Size(128, 4, 4, 344), "medium": Size(384, 6, 6, 1024)}
"""0.8M and 10.6M weights in use: those of nanoGPT's recipes for a CPU and for a GPU."""

Step = Callable[[], None]


class PlainGPT(nn.Module):
    """GPT-2's block as nanoGPT trains it: LayerNorm, GELU of 4 D, learned positions, tied head, no biases, eager."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        dim = size.dim
        self.heads = size.heads
        self.tokens, self.positions = nn.Embedding(VOCABULARY, dim), nn.Embedding(LENGTH, dim)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(dim, bias=False),
                    "qkv": nn.Linear(dim, 3 * dim, bias=False),
                    "out": nn.Linear(dim, dim, bias=False),
                    "norm2": nn.LayerNorm(dim, bias=False),
                    "up": nn.Linear(dim, 4 * dim, bias=False),
                    "down": nn.Linear(4 * dim, dim, bias=False),
                }
            )
            for _ in range(size.layers)
        )
        self.norm = nn.LayerNorm(dim, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> logits (B, T, V)"""
        batch, time_ = ids.shape
        x = self.tokens(ids) + self.positions.weight[:time_]
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            parts = block["qkv"](block["norm1"](x)).chunk(3, -1)
            q, k, v = (part.view(batch, time_, self.heads, -1).transpose(1, 2) for part in parts)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
            x = x + block["out"](attended)
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return F.linear(self.norm(x), self.tokens.weight)


class Contest:
    """Models that train on one batch, each with a step that leaves its gradients at None."""

    def __init__(self, size: Size, precision: str) -> None:
        self.size, self.precision = size, precision
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH, LENGTH)
        self.ids = torch.randint(VOCABULARY, shape, generator=generator)
        self.targets = torch.randint(VOCABULARY, shape, generator=generator)
        self.counted = torch.ones(shape, dtype=torch.bool)

    def backward_of(self, model: nn.Module, loss: Callable[[], Tensor]) -> Step:
        def step() -> None:
            with autocast(CPU, self.precision):
                found = loss()
            found.backward()  # type: ignore[no-untyped-call]  # torch's own
            model.zero_grad(set_to_none=True)

        return step

    def plain_gpt(self) -> Step:
        model = PlainGPT(self.size)
        return self.backward_of(
            model, lambda: F.cross_entropy(model(self.ids).flatten(0, 1).float(), self.targets.flatten())
        )

    def nanogpt(self, file: Path) -> Step:
        """nanoGPT's own model.py, wherever the user keeps it."""
        spec = importlib.util.spec_from_file_location("nanogpt_model", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt_model"] = module  # its dataclass looks itself up
        spec.loader.exec_module(module)
        size = self.size
        config = module.GPTConfig(LENGTH, VOCABULARY, size.layers, size.heads, size.dim, 0.0, False)
        model = module.GPT(config)
        return self.backward_of(model, lambda: model(self.ids, self.targets)[1])

    def llama(self) -> Step:
        from transformers import LlamaConfig, LlamaForCausalLM

        size = self.size
        model = LlamaForCausalLM(LlamaConfig(**self.shared(), intermediate_size=size.dense))
        return self.backward_of(model, lambda: model(input_ids=self.ids, labels=self.ids).loss)

    def mixtral(self, implementation: str) -> Step:
        from transformers import MixtralConfig, MixtralForCausalLM

        config = MixtralConfig(
            **self.shared(),
            intermediate_size=self.size.top2,
            num_local_experts=8,
            num_experts_per_tok=2,
            output_router_logits=True,  # with its balance loss, as ours
            experts_implementation=implementation,
        )
        model = MixtralForCausalLM(config)
        return self.backward_of(model, lambda: model(input_ids=self.ids, labels=self.ids).loss)

    def shared(self) -> dict[str, Any]:
        """The shape in transformers' words."""
        size = self.size
        return {
            "vocab_size": VOCABULARY,
            "hidden_size": size.dim,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "max_position_embeddings": LENGTH,
            "use_cache": False,
        }

    def config(self, ffn: dict[str, Any]) -> RunConfig:
        size = self.size
        heads = {"num_heads": size.heads, "num_kv_heads": size.heads}
        shape = {"vocab_size": VOCABULARY, "dim": size.dim, "num_layers": size.layers, "context_length": LENGTH}
        return make_config({"model": {**shape, **heads, "ffn": ffn}})

    def ours(self, ffn: dict[str, Any], compiled: bool, whole: bool = False) -> Step:
        """Forward and backward of our model; `whole` steps clip, optimise and move the controllers as well."""
        config = self.config(ffn)
        model = Transformer(config.model)
        if compiled:
            model.compile_blocks()
        if not whole:
            return self.backward_of(model, lambda: self.loss(model, config)[0])
        optimizers, clipping = Optimizers(model, config.optimizer), Clipping(config.optimizer)

        def step() -> None:
            with autocast(CPU, self.precision):
                loss, out = self.loss(model, config)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            model.observe(out, self.counted)
            clipping.clip(optimizers.names.items())
            optimizers.step()
            optimizers.zero_grad()

        return step

    def loss(self, model: Transformer, config: RunConfig) -> tuple[Tensor, Any]:
        out = model(self.ids)
        return training_loss(model, out, self.targets, self.counted, config.losses)[0], out


def race(steps: dict[str, Step], rounds: int) -> dict[str, np.ndarray[Any, Any]]:
    """Seconds of each, (rounds,), after three steps that warm up, compile and settle the allocator."""
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
    return {name: np.array(found) for name, found in seconds.items()}


def spread(values: np.ndarray[Any, Any], form: str) -> str:
    """`median (p5 to p95)`"""
    low, middle, high = (format(value, form) for value in np.percentile(values, [5, 50, 95]))
    return f"{middle} ({low} to {high})"


def report(title: str, seconds: dict[str, np.ndarray[Any, Any]], ratios: list[tuple[str, str, str]]) -> None:
    """A table of speeds, and of each ratio (what, slower, faster) the median and spread over the rounds."""
    click.echo(f"\n{title}\n\n| | ms per step | tokens/s |\n|---|---|---|")
    for name, found in seconds.items():
        click.echo(f"| {name} | {spread(1000 * found, '.1f')} | {BATCH * LENGTH / np.median(found):.0f} |")
    click.echo()
    for words, slower, faster in ratios:
        click.echo(f"{words}: {spread(seconds[slower] / seconds[faster], '.2f')}")


@click.command()
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), default=list(SIZES), show_default=True)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--rounds", default=15, show_default=True, help="Of two steps each, interleaved.")
@click.option("--threads", default=1, show_default=True)
@click.option("--nanogpt", type=click.Path(exists=True, path_type=Path), help="nanoGPT's model.py, to run it as well.")
def main(sizes: tuple[str, ...], precision: str, rounds: int, threads: int, nanogpt: Path | None) -> None:
    """Print tokens per second of ours and of peers, and the ratios."""
    torch.set_num_threads(threads)
    precision = choose_precision(precision, CPU)
    for name in sizes:
        contest = Contest(SIZES[name], precision)
        size = contest.size
        dense = {"routing": "dense", "dim": size.dense}
        top2 = {"routing": "top_k", "num_experts": 8, "experts_per_token": 2, "expert_dim": size.top2}
        top_p = {"num_experts": 8, "experts_per_token": 1.6, "expert_dim": size.top_p}
        steps = {
            "nanoGPT's shape and loop, eager": contest.plain_gpt(),
            "transformers Llama, eager": contest.llama(),
            "transformers Mixtral, grouped_mm": contest.mixtral("grouped_mm"),
            "transformers Mixtral, eager experts": contest.mixtral("eager"),
            "ours, dense, eager": contest.ours(dense, compiled=False),
            "ours, dense, compiled": contest.ours(dense, compiled=True),
            "ours, top-2 of 8, eager": contest.ours(top2, compiled=False),
            "ours, top-2 of 8, compiled": contest.ours(top2, compiled=True),
        }
        if nanogpt is not None:
            steps["nanoGPT itself, eager"] = contest.nanogpt(nanogpt)
        report(
            f"{name}, {precision}, forward and backward, {BATCH} x {LENGTH} tokens",
            race(steps, rounds),
            [
                (f"{mode} against {peer}", peer, mode)
                for peer, modes in (
                    ("nanoGPT's shape and loop, eager", ("ours, dense, eager", "ours, dense, compiled")),
                    ("transformers Mixtral, grouped_mm", ("ours, top-2 of 8, eager", "ours, top-2 of 8, compiled")),
                )
                for mode in modes
            ],
        )
        whole = {
            f"{kind}, {mode}": contest.ours(ffn, mode == "compiled", whole=True)
            for mode in ("eager", "compiled")
            for kind, ffn in (("dense", dense), ("top-p", top_p))
        }
        report(
            f"{name}, {precision}, whole steps of ours at equal weights in use",
            race(whole, rounds),
            [(f"routing, {mode}", f"top-p, {mode}", f"dense, {mode}") for mode in ("eager", "compiled")],
        )


if __name__ == "__main__":
    main()
