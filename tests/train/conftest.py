"""A tiny real run: a text of a few thousand characters, a model of 2 layers, width 32 and 4 experts."""

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.run.checkpoints.checkpoint import save_checkpoint
from adaptive_lm.train.system.progress import Progress

WORDS = (
    "the",
    "a",
    "sun",
    "moon",
    "river",
    "stone",
    "rises",
    "falls",
    "turns",
    "sleeps",
    "over",
    "under",
    "near",
    "night",
)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write about 8,000 characters with a pattern to learn."""
    generator = random.Random(0)
    lines = [" ".join(generator.choices(WORDS, k=8)) + "." for _ in range(180)]
    path = tmp_path_factory.mktemp("text") / "rivers.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the values of a run that takes a second."""
    return {
        "data": {"sources": [str(text_file)], "cache_dir": str(tmp_path_factory.mktemp("cache"))},
        "tokenizer": {"kind": "chars"},
        "model": {
            "context_length": 32,
            "dim": 32,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 1,
            "ffn": {"num_experts": 4, "expert_dim": 16, "experts_per_token": 1.6},
        },
        "trainer": {
            "steps": 12,
            "max_seconds": None,
            "batch_size": 4,
            "eval_every": 5,
            "eval_tokens": 64,
            "final_eval_tokens": 256,
            "checkpoint_every": 5,
            "log_every": 1,
            "threads": 1,
            "precision": "fp32",
            "matmul": "torch",  # what a clock finds must decide nothing
            "device": "cpu",
            "tensorboard": False,
            "routing_snapshots": 0,  # a seventh of the time
        },
    }


@pytest.fixture(scope="session")
def tiny_config(tiny: dict[str, Any]) -> Callable[..., RunConfig]:
    """Return a function that makes a config; its arguments are sections that override the tiny values."""

    def make(**sections: dict[str, Any]) -> RunConfig:
        return make_config(tiny, [sections])

    return make


@pytest.fixture(autouse=True)
def _threads_are_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def story() -> io.StringIO:
    """Return the stream in which the display writes its log."""
    return io.StringIO()


@pytest.fixture
def display(story: io.StringIO) -> Progress:
    return Progress(Console(file=story, width=400), plain_seconds=0.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "river"


@pytest.fixture
def save(run: Path) -> Callable[[int], Path]:
    """Return a function that saves step N, with one weight tensor filled with N."""

    def write(step: int) -> Path:
        weights = {"weight": torch.full((64,), float(step))}
        return save_checkpoint(run / "checkpoints", step, RunConfig(), weights, {"slot": torch.ones(3)}, {"tokens": 7})

    return write
