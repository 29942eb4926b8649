"""The matmul backend is measured once and stored: no measured time affects a run that has begun, or a test.

Every `measure` here is a stand-in with fixed results, except in the test of `measure` itself.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cover import rest_slow

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.loop.setup import matmul_backend as matmul
from adaptive_lm.train.loop.setup.matmul_backend import GAIN, choose, measure
from adaptive_lm.train.model import linear
from adaptive_lm.train.model.experts import native
from adaptive_lm.train.model.linear import has_onednn
from adaptive_lm.train.parallel.world import World
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import Run, named_run
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]
BOTH = {"linear": "onednn", "experts": "onednn"}
NONE = {"linear": "torch", "experts": "torch"}
needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")


class Watch:
    """Stands in for `measure`: oneDNN takes `onednn` of torch's time; counts its calls."""

    def __init__(self, onednn: float = 0.5) -> None:
        self.onednn, self.asked = onednn, 0

    def __call__(self, cases: object) -> dict[str, dict[str, float]]:
        self.asked += 1
        return {kind: {"torch": 1.0, "onednn": self.onednn} for kind in BOTH}


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch()
    monkeypatch.setattr(matmul, "measure", found)
    return found


@pytest.fixture
def make(tiny_config: Make, tmp_path: Path) -> Callable[..., RunConfig]:
    """Make the config of a run with an empty cache folder."""

    def config(**trainer: Any) -> RunConfig:
        settings = {"steps": 4, "checkpoint_every": 2, "matmul": "auto", **trainer}
        return tiny_config(trainer=settings, data={"cache_dir": str(tmp_path / "cache")})

    return config


def chosen(run: Run) -> dict[str, str]:
    found: dict[str, str] = load_checkpoint(run.path).state["matmul"]
    assert json.loads((run.path / "versions.json").read_text())["sessions"][-1]["matmul"] == found
    return found


@pytest.mark.parametrize(
    ("layers", "experts", "expected"),
    [
        (0.5, 0.5, ["onednn", "onednn"]),
        (0.5, 1.05, ["onednn", "torch"]),
        (2.0, 0.8, ["torch", "onednn"]),
        (GAIN + 0.01, GAIN - 0.01, ["torch", "onednn"]),
    ],
)
def test_onednn_is_taken_where_it_is_clearly_faster(layers: float, experts: float, expected: list[str]) -> None:
    times = {"linear": layers, "experts": experts}
    assert list(choose({kind: {"torch": 1.0, "onednn": each} for kind, each in times.items()}).values()) == expected


def test_a_kind_that_the_model_does_not_have_is_torchs() -> None:
    assert choose({kind: {"torch": 0.0, "onednn": 0.0} for kind in BOTH}) == NONE


@needs_onednn
def test_both_backends_are_measured_without_the_random_generator_of_the_run() -> None:
    state, threads = torch.get_rng_state(), 2
    torch.set_num_threads(threads)
    cases = Counter({("linear", 8, (6, 4)): 3, ("experts", 8, (3, 4, 10), (3, 5, 4), 1.6): 2})
    seconds = measure(cases)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(each > 0 for of_kind in seconds.values() for each in of_kind.values())


@needs_onednn
def test_a_run_measures_once_and_says_what_it_chose(
    make: Make, folder: Path, display: Progress, story: Any, watch: Watch
) -> None:
    training.begin(make(), named_run("a"), stop_at=2, display=display)
    assert chosen(named_run("a")) == BOTH
    assert "cpu fp32, linear layers and experts by oneDNN" in story.getvalue()
    watch.onednn = 2.0
    training.resume(named_run("a"), display=display)
    assert watch.asked == 1
    assert chosen(named_run("a")) == BOTH
    assert "note: matmul" not in story.getvalue()


@needs_onednn
def test_the_same_run_begun_again_makes_the_same_choice_and_other_shapes_are_measured(
    make: Make, folder: Path, display: Progress, watch: Watch
) -> None:
    training.begin(make(), named_run("a"), display=display)
    watch.onednn = 2.0
    training.begin(make(), named_run("b"), display=display)
    assert watch.asked == 1
    assert chosen(named_run("b")) == BOTH
    training.begin(make(batch_size=2), named_run("c"), display=display)
    assert watch.asked == 2
    assert chosen(named_run("c")) == NONE


@needs_onednn
@pytest.mark.parametrize(
    "left",
    rest_slow(
        ["", "{", '{"choice": {"linear": "onednn"}}', '{"choice": {"linear": 1, "experts": 2}}'],
        ["{", '{"choice": {"linear": 1, "experts": 2}}'],
    ),
)
def test_a_stored_choice_that_cannot_be_read_is_measured_again(
    make: Make, folder: Path, display: Progress, watch: Watch, left: str
) -> None:
    training.begin(make(), named_run("a"), display=display)
    (kept,) = (folder / "cache" / "matmul").iterdir()
    kept.write_text(left)
    training.begin(make(), named_run("b"), display=display)
    assert watch.asked == 2
    assert json.loads(kept.read_text())["choice"] == BOTH


@needs_onednn
def test_a_run_in_parts_equals_a_run_in_one_whatever_would_be_measured_later(
    make: Make, folder: Path, display: Progress, watch: Watch
) -> None:
    """T13: the weights to the last bit, of a run whose second part would have measured otherwise."""
    training.begin(make(matmul="onednn"), named_run("whole"), display=display)
    training.begin(make(), named_run("parts"), stop_at=2, display=display)
    shutil.rmtree(folder / "cache" / "matmul")
    watch.onednn = 2.0
    training.resume(named_run("parts"), display=display)
    whole, parts = (load_checkpoint(Path("runs") / name) for name in ("whole", "parts"))
    assert whole.step == parts.step == 4
    assert watch.asked == 1
    assert chosen(named_run("parts")) == BOTH
    assert all(torch.equal(each, parts.model_state[name]) for name, each in whole.model_state.items())
    assert all(torch.equal(each, parts.optimizer_state[name]) for name, each in whole.optimizer_state.items())


@pytest.mark.parametrize("wanted", ["torch", pytest.param("onednn", marks=needs_onednn)])
def test_a_backend_in_the_config_is_not_measured(
    make: Make, folder: Path, display: Progress, watch: Watch, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = []
    monkeypatch.setattr(linear, "onednn_mm", lambda a, b: products.append(1) or torch.mm(a, b))
    training.begin(make(matmul=wanted), named_run("a"), display=display)
    assert watch.asked == 0
    assert bool(products) == (wanted == "onednn")
    assert set(chosen(named_run("a")).values()) == {wanted}


@needs_onednn
def test_a_resumed_run_may_change_its_backend_and_says_so(
    make: Make, folder: Path, display: Progress, story: Any, watch: Watch
) -> None:
    training.begin(make(), named_run("a"), stop_at=2, display=display)
    training.resume(named_run("a"), [{"trainer": {"matmul": "torch"}}], display=display)
    assert f"note: matmul was {BOTH} and is {NONE}: results differ in the last bits" in story.getvalue()
    assert chosen(named_run("a")) == NONE


@needs_onednn
def test_a_resumed_run_without_its_backend_uses_torch_and_says_so(
    make: Make, folder: Path, display: Progress, story: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.begin(make(), named_run("a"), stop_at=2, display=display)
    monkeypatch.setattr(matmul, "has_onednn", lambda: False)
    assert training.resume(named_run("a"), display=display).complete
    assert f"note: matmul was {BOTH} and is {NONE}: results differ in the last bits" in story.getvalue()


def test_a_run_from_before_there_was_a_choice_stays_with_torch(
    make: Make, folder: Path, display: Progress, story: Any, watch: Watch
) -> None:
    training.begin(make(matmul="torch"), named_run("a"), stop_at=2, display=display)
    found = load_checkpoint(Path("runs/a"))
    del found.state["matmul"]
    model, config = torch.nn.Linear(1, 1), make()
    model.embedding, model.use_onednn = torch.nn.Embedding(1, 1), lambda **on: None
    choice = matmul.settle_matmul(
        model, config.trainer, config.sequence_length, folder / "cache",
        precision="fp32", checkpoint=found, world=World(), display=display,
    )  # fmt: skip
    assert choice == NONE
    assert watch.asked == 0
    assert "note: matmul" not in story.getvalue()


def test_onednn_in_the_config_is_refused_where_torch_has_none(
    make: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "has_onednn", lambda: False)
    with pytest.raises(UserError, match=r"has no oneDNN; use torch: --set trainer\.matmul=torch"):
        training.begin(make(matmul="onednn"), named_run("a"), display=display)


@pytest.mark.parametrize("wanted", ["auto", "onednn"])
def test_in_bf16_nothing_is_measured_or_changed(
    make: Make, folder: Path, display: Progress, story: Any, watch: Watch, wanted: str
) -> None:
    training.begin(make(matmul=wanted, precision="bf16"), named_run("a"), display=display)
    assert watch.asked == 0
    assert chosen(named_run("a")) == NONE
    assert ("note: trainer.matmul is onednn, which is for fp32 on a CPU" in story.getvalue()) == (wanted == "onednn")


@pytest.mark.parametrize(
    ("of_model", "precision", "there", "expected"),
    [
        ({}, "bf16", True, True),
        ({}, "bf16", False, False),
        ({}, "fp32", True, False),
        ({"ffn": {"routing": "dense"}}, "bf16", True, False),
        ({"dim": 24}, "bf16", True, False),
    ],
    ids=["serves", "no compiler", "fp32", "no experts", "a width that does not fit"],
)
def test_a_run_says_whether_its_experts_run_in_cpp(
    tiny_config: Make, folder: Path, display: Progress, story: Any, monkeypatch: pytest.MonkeyPatch,
    of_model: dict[str, Any], precision: str, there: bool, expected: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(native, "library", lambda: there or None)
    config = tiny_config(trainer={"steps": 0, "precision": precision}, model=of_model)
    training.begin(config, named_run("a"), display=display)
    assert (f"cpu {precision}, experts in C++" in story.getvalue()) is expected
    assert load_checkpoint(Path("runs/a")).state["kernels"] == ("C++" if expected else "torch")
