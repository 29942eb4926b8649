"""Snapshots of the routing of a fixed text, taken while a run trains."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.loop.figures.routing_trace import RoutingTrace
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]


@pytest.fixture
def tiny_config(tiny: dict[str, Any]) -> Make:
    """Make configs as the fixture of that name everywhere does, but with snapshots."""
    return lambda **sections: make_config(tiny, [{"trainer": {"routing_snapshots": 64}}, sections])


def steps(run: Path) -> list[int]:
    return [int(path.stem[5:]) for path in sorted((run / "routing").glob("step-*.npz"))]


def read(run: Path, step: int) -> dict[str, np.ndarray]:
    with np.load(run / "routing" / f"step-{step:06d}.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_a_snapshot_is_what_the_model_chose_at_that_step(tiny_config: Make, folder: Path, display: Progress) -> None:
    config = tiny_config(
        model={"heads": {"routing": "top_p", "shared_heads": 1, "heads_per_token": 2.5}, "num_heads": 4}
    )
    training.begin(config, named_run("a"), display=display)
    run = Path("runs/a")
    assert steps(run) == [0, 5, 10, 12]
    checkpoint = load_checkpoint(run)
    model = Transformer(checkpoint.config.model).eval()
    model.load_state_dict(checkpoint.model_state)
    found = read(run, 12)
    length, tokens = 32, found["experts.ranked"].shape[1]
    text = (run / "heldout.txt").read_text()
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(run / "tokenizer.json")).encode(text).ids
    ids = [0, *ids]  # the end of the text before it
    with torch.no_grad():
        out = model(torch.tensor([ids[:length]]))
    assert found["experts.layers"].tolist() == found["heads.layers"].tolist() == [0, 1]
    assert tokens >= 512
    for kind, first in (("experts", 0), ("heads", 1)):
        for l, layer in enumerate(out.routing):
            chosen = layer.routes.selected_experts if kind == "experts" else layer.heads.selected_heads[:, 1:]
            for token in range(length):
                used = found[f"{kind}.used"][l, token]
                kept = sorted(found[f"{kind}.ranked"][l, token, :used].tolist())
                assert kept == [unit + first for unit in torch.nonzero(chosen[token]).flatten().tolist()]
    assert (found["heads.used"] >= 1).all()


def test_snapshots_change_nothing_in_training(tiny_config: Make, folder: Path, display: Progress) -> None:
    """T37: the routers' controllers, dropout and all weights are the same with and without."""
    dropout = {"depth": {"layers_share": 0.7, "layer_dropout": 0.2}, "num_layers": 3}
    for name, most in (("a", 64), ("b", 0)):
        config = tiny_config(model=dropout, trainer={"routing_snapshots": most})
        training.begin(config, named_run(name), display=display)
    assert not (Path("runs/b") / "routing").exists()
    a, b = load_checkpoint("runs/a"), load_checkpoint("runs/b")
    assert all(torch.equal(a.model_state[name], b.model_state[name]) for name in a.model_state)
    assert a.state["random"] == b.state["random"]


def test_a_resumed_run_has_the_snapshots_of_a_run_in_one(tiny_config: Make, folder: Path, display: Progress) -> None:
    training.begin(tiny_config(), named_run("a"), display=display)
    run = named_run("b")
    training.begin(tiny_config(), run, display=display, stop_at=7)
    (run.path / "routing" / "step-000009.npz").write_bytes(b"of steps that were lost")
    training.resume(run, display=display)
    assert steps(run.path) == steps(Path("runs/a"))
    for step in steps(run.path):
        one, other = read(run.path, step), read(Path("runs/a"), step)
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_there_are_never_more_snapshots_than_configured(tiny_config: Make, folder: Path, display: Progress) -> None:
    config = tiny_config(trainer={"steps": 30, "eval_every": 1, "routing_snapshots": 8})
    training.begin(config, named_run("a"), display=display)
    found = steps(Path("runs/a"))
    assert len(found) == 8
    assert found[0] == 0
    assert found[-1] == 30
    assert max(b - a for a, b in pairwise(found)) <= 8, "spread over the run"


def test_a_model_that_chooses_nothing_has_no_snapshots(tiny_config: Make, folder: Path, display: Progress) -> None:
    training.begin(tiny_config(model={"ffn": {"routing": "dense"}}), named_run("a"), display=display)
    assert not (Path("runs/a") / "routing").exists()


def test_a_full_disk_ends_the_snapshots_and_not_the_run(
    tiny_config: Make, folder: Path, display: Progress, story: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RoutingTrace, "write", staticmethod(full))
    assert training.begin(tiny_config(), named_run("a"), display=display).complete
    assert story.getvalue().count("adaptive inspect will not show the saturation of the rest of the run") == 1
