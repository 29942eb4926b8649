"""What recomputing activations saves and costs: peak memory and time of a training step, 12 layers, 1024 tokens long.

    python benchmarks/train_memory.py --rounds 5

Each variant trains in a process of its own, one thread, forward, backward and optimizer. Three figures of memory, the
first two of one step of a run that has its optimizer's slots:

    held   what torch held at the most beyond what it held before the step (weights, slots), as its profiler counts;
    step   by how much the process stood higher in the step (VmHWM, set back before it) than at rest (VmRSS, after glibc
           has given back what is free): what a machine must have to spare for a step, allocator and all;
    grown  by how much the process grew at its highest since the model stood: with the slots of the optimizer and the
           code that torch loads when first used, which are the same whether activations are kept or not.

Gradients are in all three. Times are CPU seconds of the process, so that a neighbour on the machine adds little; the
variants take turns, and the ratios are of one round.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import click

KINDS: dict[str, dict[str, Any]] = {
    "top-p": {"routing": "top_p", "num_experts": 8, "experts_per_token": 1.6, "expert_dim": 216},
    "dense": {"routing": "dense", "dim": 344},
}


def resident(which: str) -> float:
    """MiB of memory that this process has (VmRSS), or had at the most (VmHWM)."""
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(which)) / 1024


def come_to_rest() -> float:
    """Gives back what is free and sets VmHWM back; MiB of what is left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return resident("VmRSS")


def one(kind: str, recompute: bool, compiled: bool, batch: int, length: int, layers: int) -> dict[str, float]:
    """Trains a few steps in this process and says what the last took."""
    import torch

    from adaptive_lm.train.model import LossConfig, ModelConfig, Transformer, training_loss
    from adaptive_lm.train.optim.optimizer import OptimizerConfig, Optimizers
    from adaptive_lm.train.system.device import autocast, choose_precision

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = {"vocab_size": 65, "context_length": length, "num_layers": layers, "ffn": KINDS[kind]}
    model = Transformer(ModelConfig.model_validate(config)).train()
    if compiled:
        model.compile_blocks()
    optimizers = Optimizers(model, OptimizerConfig())
    device = torch.device("cpu")
    precision = choose_precision("auto", device)
    ids = torch.randint(65, (batch, length + 1))
    everything = torch.ones(batch, length, dtype=torch.bool)

    def step() -> None:
        with autocast(device, precision):
            out = model(ids[:, :-1], checkpoint_activations=recompute)
            loss, _ = training_loss(model, out, ids[:, 1:], everything, LossConfig())
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        model.observe(out)
        optimizers.step()
        optimizers.zero_grad()

    before = resident("VmRSS")
    step()
    step()
    seconds = []
    for _ in range(3):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    grown = resident("VmHWM") - before
    at_rest = come_to_rest()
    step()
    above_rest = resident("VmHWM") - at_rest
    with torch.profiler.profile(profile_memory=True) as profiler:
        step()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return {"seconds": median(seconds), "held": most / 2**20, "step": above_rest, "grown": grown}


def variant(**how: Any) -> dict[str, float]:
    """`one` in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", json.dumps(how)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each variant is run, in turn.")
@click.option("--batch", default=2, show_default=True, help="Sequences of a step.")
@click.option("--length", default=1024, show_default=True)
@click.option("--layers", default=12, show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="With compiled blocks.")
@click.option("--one", "alone", hidden=True)
def main(rounds: int, batch: int, length: int, layers: int, compiled: bool, alone: str | None) -> None:
    if alone is not None:
        click.echo(json.dumps(one(**json.loads(alone))))
        return
    how = {"compiled": compiled, "batch": batch, "length": length, "layers": layers}
    click.echo(f"{layers} layers, {batch} x {length} tokens, one thread, {rounds} rounds" + ", compiled" * compiled)
    for kind in KINDS:
        pairs = [[variant(kind=kind, recompute=each, **how) for each in (False, True)] for _ in range(rounds)]
        click.echo(f"{kind}: recomputing against keeping, median (lowest to highest)")
        for name, unit in (("held", "MiB"), ("step", "MiB"), ("grown", "MiB"), ("seconds", "s")):
            ratios = sorted(again[name] / kept[name] for kept, again in pairs)
            kept, again = (median(pair[place][name] for pair in pairs) for place in (0, 1))
            spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            click.echo(f"  {name:8} {kept:8.2f} -> {again:8.2f} {unit:4} ratio {spread}")


if __name__ == "__main__":
    main()
