"""Peak memory and time of a training step with and without recomputing activations, 12 layers, 1024 tokens.

    python benchmarks/train_memory.py --rounds 5

Each variant trains in a separate process on one thread: forward, backward and optimizer. Three figures of memory, the
first two for one step after the optimizer has its slots:

    held   the most that torch's profiler counts beyond the memory before the step (weights, slots);
    step   the peak of the process in the step (VmHWM, reset before it) above its memory at rest (VmRSS, after glibc has
           returned free memory): what a machine needs for a step, allocator included;
    grown  the growth of the process since the model was built, with the optimizer's slots and the code that torch loads
           on first use, which are the same whether activations are kept or not.

All three contain the gradients. Times are CPU seconds of the process, which other processes disturb less; the variants
take turns, and each ratio is taken within one round.
"""

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

from processes.memory import forget_peak, peak, resident

MIB = 2**20
KINDS: dict[str, dict[str, Any]] = {
    "top-p": {"routing": "top_p", "num_experts": 8, "experts_per_token": 1.6, "expert_dim": 216},
    "dense": {"routing": "dense", "dim": 344},
}


def come_to_rest() -> float:
    """Return free memory to the system and reset VmHWM; return the MiB that are left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return forget_peak() / MIB


def one(kind: str, recompute: bool, compiled: bool, batch: int, length: int, layers: int) -> dict[str, float]:
    """Train a few steps in this process and measure the last ones."""
    import torch

    from adaptive_lm.train.model import LossConfig, ModelConfig, Transformer, training_loss
    from adaptive_lm.train.optim.optimizer import Optimizers
    from adaptive_lm.train.optim.optimizer_config import OptimizerConfig
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

    before = resident() / MIB
    step()
    step()
    seconds = []
    for _ in range(3):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    grown = peak() / MIB - before
    at_rest = come_to_rest()
    step()
    above_rest = peak() / MIB - at_rest
    with torch.profiler.profile(profile_memory=True) as profiler:
        step()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return {"seconds": median(seconds), "held": most / MIB, "step": above_rest, "grown": grown}


def variant(**how: Any) -> dict[str, float]:
    """Call `one` in a separate process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", json.dumps(how)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr[-3000:])
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Runs of each variant, in turn.")
@click.option("--batch", default=2, show_default=True, help="Sequences per step.")
@click.option("--length", default=1024, show_default=True, help="Tokens per sequence.")
@click.option("--layers", default=12, show_default=True, help="Layers of the model.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the blocks.")
@click.option("--one", "alone", hidden=True)
def main(rounds: int, batch: int, length: int, layers: int, compiled: bool, alone: str | None) -> None:
    """Print memory and time of a training step, with activations kept and recomputed."""
    if alone is not None:
        click.echo(json.dumps(one(**json.loads(alone))))
        return
    how = {"compiled": compiled, "batch": batch, "length": length, "layers": layers}
    click.echo(f"{layers} layers, {batch} x {length} tokens, one thread, {rounds} rounds" + ", compiled" * compiled)
    for kind in KINDS:
        pairs = [[variant(kind=kind, recompute=each, **how) for each in (False, True)] for _ in range(rounds)]
        click.echo(f"{kind}: activations kept -> recomputed, median (lowest to highest)")
        for name, unit in (("held", "MiB"), ("step", "MiB"), ("grown", "MiB"), ("seconds", "s")):
            ratios = sorted(recomputing[name] / keeping[name] for keeping, recomputing in pairs)
            before, after = (median(pair[place][name] for pair in pairs) for place in (0, 1))
            spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            click.echo(f"  {name:8} {before:8.2f} -> {after:8.2f} {unit:4} ratio {spread}")


if __name__ == "__main__":
    main()
