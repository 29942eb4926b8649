"""Cost of logging the figures of layers and routers: CPU seconds of a logged step beside an unlogged one, in pairs.

OMP_NUM_THREADS=1 python benchmarks/monitoring.py [--recipe quickstart] [--pairs 40]
"""

import argparse
import os
import statistics
import tempfile
import time

import torch
from rich.console import Console

from adaptive_lm.train.config.run_config import RECIPES, make_config, read_recipe
from adaptive_lm.train.data import prepare
from adaptive_lm.train.loop.setup.assembly import assemble
from adaptive_lm.train.loop.setup.completion import with_end, with_vocabulary
from adaptive_lm.train.loop.trainer import Trainer
from adaptive_lm.train.parallel.world import World
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import Metrics
from adaptive_lm.train.system.progress import Progress


def trainer_of(recipe: str) -> Trainer:
    """Return a trainer in a temporary folder that logs every second step."""
    os.chdir(tempfile.mkdtemp())
    settings = {"trainer": {"threads": 1, "log_every": 2, "tensorboard": False, "steps": 10_000}}
    config = make_config(read_recipe(recipe), [settings])
    corpus = prepare(config.data, config.tokenizer, seed=0, log=lambda _: None, length=config.sequence_length)
    config = with_end(with_vocabulary(config, corpus), corpus)
    torch.set_num_threads(1)
    model, optimizers, counters, _ = assemble(config, torch.device("cpu"), None, World())
    run = named_run("a")
    run.checkpoints.mkdir(parents=True)
    quiet = Progress(Console(quiet=True))
    return Trainer(
        config, run, model, corpus, optimizers, precision="fp32", metrics=Metrics(run.path, 0), display=quiet,
        counters=counters, identity={},
    )  # fmt: skip


def seconds_of_step(one: Trainer) -> float:
    """Take a step; return its CPU seconds, which other processes disturb less than the wall clock."""
    one.shape = one.lengths.shape(one.counters, 0.0)
    one.optimizers.set_rate(0.1)
    started = time.process_time()
    one.update.step(one.shape)
    seconds = time.process_time() - started
    one.counters.step += 1
    return seconds


def main() -> None:
    """Print the ratio of logged to unlogged steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    parser.add_argument("--recipe", default="quickstart", choices=recipes, help="recipe to train (default: quickstart)")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of steps (default: 40)")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error("--pairs: expected 2 or more, to have quartiles")
    one = trainer_of(options.recipe)
    for _ in range(4):
        seconds_of_step(one)
    plain, logged = [], []
    for _ in range(options.pairs):
        plain.append(seconds_of_step(one))
        logged.append(seconds_of_step(one))  # the second of two
    ratios = sorted(b / a for a, b in zip(plain, logged, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4)
    print(
        f"{options.recipe}: {statistics.median(plain) * 1e3:.1f} ms per step, {statistics.median(logged) * 1e3:.1f} ms "
        f"per logged step; ratio {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f}, "
        f"{options.pairs} pairs)"
    )


if __name__ == "__main__":
    main()
