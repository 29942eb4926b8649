"""Time that saving takes from training: blocking, in the background, and by torch.distributed.checkpoint.

    python benchmarks/saves.py [--rounds 7] [--width 512] [--folder FOLDER]

A model of 8 layers (96M numbers with both slots of its optimizer at width 512) takes three steps, saves, and takes
three more during the save. The output is medians and quartiles over interleaved rounds: how long the call blocked the
loop, the time of the steps during the save over that of the others, and the time until everything was on disk. `dcp` is
`async_save` with the safetensors writer, which allocates a staging copy each time, syncs, and writes no digests and no
other state.
"""

import argparse
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import async_save

from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.optim.optimizer import Optimizers
from adaptive_lm.train.run.checkpoints.saver import Saver
from adaptive_lm.train.run.folder import Run
from adaptive_lm.train.system.progress import Progress

BESIDE = 3
"""Steps timed after a save, and without one."""


class Training:
    """A model, its optimizers, and one batch of 4 times 64 tokens."""

    def __init__(self, width: int) -> None:
        model = {"vocab_size": 512, "context_length": 64, "dim": width, "num_layers": 8, "num_heads": 8}
        ffn = {"num_experts": 4, "expert_dim": width, "experts_per_token": 1.6}
        self.config = make_config({"model": {**model, "num_kv_heads": 4, "ffn": ffn}, "optimizer": {"kind": "adamw"}})
        torch.manual_seed(0)
        self.model = Transformer(self.config.model)
        self.optimizers = Optimizers(self.model, self.config.optimizer)
        self.ids = torch.randint(0, 512, (4, 64))

    def steps(self, number: int) -> float:
        """Take steps; return the seconds."""
        began = time.monotonic()
        for _ in range(number):
            out = self.model(self.ids)
            torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), self.ids.flatten()).backward()  # type: ignore[no-untyped-call]  # torch's own
            self.optimizers.step()
            self.optimizers.zero_grad()
        return time.monotonic() - began


def ours(training: Training, kind: str, folder: Path) -> tuple[Callable[[int], None], Callable[[], None]]:
    """Return functions that save with our saver, and that wait for the save."""
    config = RunConfig.model_validate(
        {**training.config.model_dump(), "trainer": {**training.config.trainer.model_dump(), "save": kind}}
    )
    saver = Saver(config, Run(folder), Progress(), [], 0.0)
    return (
        lambda step: saver.save(step, training.model.state_dict(), training.optimizers.state_tensors(), {}, None),
        saver.wait,
    )


def torchs(training: Training, folder: Path) -> tuple[Callable[[int], None], Callable[[], None]]:
    """Return functions that save with torch's saver, and that wait for the save."""
    pending: list[Any] = []

    def save(step: int) -> None:
        place = folder / str(step)
        writer = HuggingFaceStorageWriter(str(place))
        tensors = {**training.model.state_dict(), **training.optimizers.state_tensors()}
        pending.append(async_save(tensors, storage_writer=writer, no_dist=True))

    def wait() -> None:
        pending.pop().result()
        for old in sorted(folder.iterdir())[:-1]:
            shutil.rmtree(old)

    return save, wait


def main() -> None:
    """Print a table of the three ways to save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--width", type=int, default=512, help="width of the model (default: 512)")
    parser.add_argument("--folder", help="folder on the disk to measure (default: a temporary one)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: expected 2 or more, to have quartiles")
    warnings.filterwarnings("ignore")  # torch warns about its experimental parts
    training = Training(options.width)
    training.steps(2)
    numbers = sum(t.numel() for t in [*training.model.parameters(), *training.optimizers.state_tensors().values()])
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        savers = {
            "blocking": ours(training, "blocking", Path(name) / "blocking"),
            "background": ours(training, "background", Path(name) / "background"),
            "dcp": torchs(training, Path(name) / "dcp"),
        }
        for kind in savers:
            (Path(name) / kind).mkdir()
        blocked: dict[str, list[float]] = {kind: [] for kind in savers}
        ratios: dict[str, list[float]] = {kind: [] for kind in savers}
        whole: dict[str, list[float]] = {kind: [] for kind in savers}
        for round_ in range(options.rounds + 1):
            for kind, (save, wait) in savers.items():
                alone = training.steps(BESIDE)
                began = time.monotonic()
                save(round_ + 1)
                called = time.monotonic() - began
                ratio = training.steps(BESIDE) / alone
                wait()
                if round_:  # the first round allocates buffers
                    blocked[kind].append(called)
                    ratios[kind].append(ratio)
                    whole[kind].append(time.monotonic() - began)
    print(f"{numbers / 1e6:.0f}M numbers, {numbers * 4 / 2**20:.0f} MiB, a step of {alone / BESIDE * 1000:.0f} ms")
    print("save        loop blocked, ms       steps during it, ratio   until on disk, ms")
    for kind in savers:
        cells = [
            *quartiles([1000 * each for each in blocked[kind]], ".0f"),
            *quartiles(ratios[kind], ".2f"),
            *quartiles([1000 * each for each in whole[kind]], ".0f"),
        ]
        print(f"{kind:<11} {cells[0]:<22} {cells[1]:<24} {cells[2]}")


def quartiles(values: list[float], form: str) -> list[str]:
    """Format the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return [f"{middle:{form}} ({low:{form}} to {high:{form}})"]


if __name__ == "__main__":
    main()
