"""Two ranks on the CPU compared with one process: T19, T30, and how all ranks end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ranks
from support.cover import rest_slow
from support.operators.compiler import needs_compiler
from support.ranks import ACTS, KINDS, SAME, SHORT, SHORT_KIND, config, one_of, over
from torch import Tensor

from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.model.linear import has_onednn
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import Run
from adaptive_lm.train.run.metrics import read_metrics

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the second rank is a fork of the first")
SLOW = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("localhost", 0))
        port: int = held.getsockname()[1]
        return port


def meet(folder: Path, part: str) -> None:
    """Run one part of the scenarios of two ranks."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, ranks.__file__, str(folder), part],
        env={**os.environ, **shared},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as both:
        try:
            said = both.communicate(timeout=600)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(both.pid, signal.SIGKILL)  # ranks that wait for each other would wait for hours
    assert both.returncode == 0, said


def train_alone(two: Path, names: Iterable[str], kinds: Iterable[str]) -> None:
    """Train, in the current folder, what runs of two ranks are compared with; in `two`, the runs that they resume."""
    threads = torch.get_num_threads()
    try:
        for name in sorted({one_of(name): name for name in names}.values()):
            alone = make_config(ranks.BASE, [SAME[name], {"trainer": {"compile": False}}])
            training.begin(alone, Run(Path("runs") / one_of(name)))
        for kind in kinds:
            training.begin(config(over({}, kind)), Run(two / "runs" / f"one-{kind}"), stop_at=4)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def short_form(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train what `make test` compares with one process and with two; return the two folders of runs."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for folder in (one, two):
        ranks.write_text(folder)
    with contextlib.chdir(one):
        train_alone(two, ["muon-shard", *SHORT], [SHORT_KIND])
        meet(two, "short")
    return one, two


@pytest.fixture(scope="module")
def long_form(short_form: tuple[Path, Path]) -> tuple[Path, Path]:
    """Train all the rest too, in the same two folders."""
    one, two = short_form
    with contextlib.chdir(one):
        training.begin(config({"trainer": {"steps": 3}}), Run(Path("runs") / "elder"))
        shutil.copytree(one / "runs" / "elder", two / "runs" / "elder")
        done = {one_of(name) for name in ("muon-shard", *SHORT)}
        train_alone(two, [name for name in SAME if one_of(name) not in done], [k for k in KINDS if k != SHORT_KIND])
        meet(two, "rest")
    return one, two


@pytest.fixture
def places(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """Return the folders of the runs of one process and of two: of all runs for a test that is marked slow."""
    slow = request.node.get_closest_marker("slow")
    folders: tuple[Path, Path] = request.getfixturevalue("long_form" if slow else "short_form")
    return folders


def weights(run: Path, kind: str = "model_state") -> dict[str, Tensor]:
    found: dict[str, Tensor] = getattr(load_checkpoint(run), kind)
    return found


def worst(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


def curves(run: Path, *keys: str) -> list[list[float]]:
    records = read_metrics(run / "metrics.jsonl")
    return [[record[key] for record in records if record.get(key) is not None] for key in keys]


@pytest.mark.parametrize("name", rest_slow(SAME, SHORT))
def test_two_ranks_train_as_one_process(places: tuple[Path, Path], name: str) -> None:
    """The losses, norms and numbers of experts of every step, the held-out losses, and the weights at the end.

    Without Muon what differs is the order of sums: 5e-7 was measured. Muon's bfloat16 makes a hundredth of an update of
    a last bit, and then a token here and there takes another expert: one process whose initial weights are moved by
    3e-8 of themselves is off by 2e-7, 5e-6 and 8e-5 in the losses of steps 2 to 4, and by 6e-4 after eight. So there
    only the losses are compared.
    """
    one, two = places[0] / "runs" / one_of(name), places[1] / "runs" / name
    smooth = not name.startswith("muon")
    keys = ("loss", "total_loss", "val_loss", "grad_norm", "load_balancing_loss", "experts_per_token")
    keys = keys if smooth else keys[:3]
    for key, alone, shared in zip(keys, curves(one, *keys), curves(two, *keys), strict=True):
        tolerance = 5e-6 if smooth else 5e-3
        assert alone, key
        assert shared == pytest.approx(alone, rel=tolerance, abs=tolerance), key
    for key in ("loss/a", "val_loss/b", "experts_per_token/a", "share/a") if name.startswith("tasks") else ():
        (alone,), (shared,) = (curves(run, key) for run in (one, two))
        assert alone, key
        assert shared == pytest.approx(alone, rel=1e-5), key
    alone, shared = (curves(run, "loss")[0][:3] for run in (one, two))
    assert shared == pytest.approx(alone, abs=5e-5)
    assert worst(weights(one), weights(two)) < (1e-4 if smooth else 0.05)
    randoms = [weights(run, "optimizer_state")["random.torch"] for run in (one, two)]
    assert torch.equal(*randoms), "all ranks draw for the whole batch, so their generators stay those of one process"


@SLOW
@pytest.mark.parametrize(("what", "expected"), [("opinions", has_onednn()), ("nowhere", False)])
def test_all_ranks_multiply_as_the_first_measured_and_by_torch_where_one_has_no_onednn(
    places: tuple[Path, Path], what: str, expected: bool
) -> None:
    choices = [json.loads((places[1] / f"{what}.{rank}.json").read_text()) for rank in range(2)]
    assert choices == [{"linear": expected, "experts": expected}] * 2


@pytest.mark.parametrize("name", rest_slow(SAME, SHORT))
def test_all_ranks_end_with_the_same_weights_and_controllers(places: tuple[Path, Path], name: str) -> None:
    digests = [(places[1] / f"{name}.{rank}.digest").read_text() for rank in range(2)]
    assert digests[0] == digests[1]


@SLOW
@needs_compiler
def test_blocks_whose_weights_are_gathered_compile_whole(places: tuple[Path, Path]) -> None:
    """T39 over ranks: one graph for each of the two kinds of block, with and without a depth router.

    Text that is routed differently needs no new graph. Another test compares the losses with those of one process.
    """
    for outcome in outcomes(places, "graphs"):
        assert outcome == {"graphs": 2, "breaks": {}}


@pytest.mark.parametrize("kind", rest_slow(KINDS, [SHORT_KIND]))
def test_a_run_is_resumed_with_another_number_of_ranks(places: tuple[Path, Path], kind: str) -> None:
    """T19: a run saved by one rank is resumed by two, and the reverse.

    Each result equals that of one process within rounding, as for an uninterrupted run of two ranks. All tokens are
    the same.
    """
    runs = places[1] / "runs"
    half = Run(runs / f"half-{kind}")
    assert load_checkpoint(half.path).step == 4
    before = Path.cwd()
    try:
        os.chdir(places[1])
        training.resume(half)
    finally:
        os.chdir(before)
    one = load_checkpoint(places[0] / "runs" / "muon")
    for run in (half.path, runs / f"one-{kind}"):
        resumed = load_checkpoint(run)
        assert resumed.step == 8
        assert resumed.state["tokens_digest"] == one.state["tokens_digest"]
        assert curves(run, "loss")[0] == pytest.approx(curves(places[0] / "runs" / "muon", "loss")[0], abs=0.01)
        assert worst(one.model_state, resumed.model_state) < 0.05
        assert set(resumed.optimizer_state) == set(one.optimizer_state)


@SLOW
@pytest.mark.parametrize("name", [name for name in SAME if one_of(name) in ("taught", "shown")])
def test_two_ranks_learn_from_a_teacher_as_one_process(places: tuple[Path, Path], name: str) -> None:
    """The losses of distillation, and the matrices that are trained beside the model with their optimizer's slots."""
    one, two = places[0] / "runs" / one_of(name), places[1] / "runs" / name
    own = ("exit_distillation_loss", "dial_distillation_loss") if one_of(name) == "taught" else ("hidden_loss",)
    keys = ("distillation_loss", "teacher_loss", "teacher_agreement", *own)
    for key, alone, shared in zip(keys, curves(one, *keys), curves(two, *keys), strict=True):
        assert len(alone) == 8, key
        assert shared == pytest.approx(alone, rel=5e-6, abs=5e-6), key
    beside = [
        {key: value for key, value in weights(run, "optimizer_state").items() if key.startswith("distillation.")}
        for run in (one, two)
    ]
    assert len(beside[0]) == (8 if one_of(name) == "shown" else 0)
    assert not beside[0] or worst(*beside) < 1e-4


def acts(run: Path) -> list[tuple[int, list[str]]]:
    return [(each["step"], each["acts"]) for each in read_metrics(run / "metrics.jsonl") if "acts" in each]


def remembered(run: Path) -> dict[str, Any]:
    """Read the state of the monitor's acts in a checkpoint: the rates, the batch, and until when routers are spread."""
    state = load_checkpoint(run).state
    monitor = state["monitor"]
    return {
        **{name: monitor[name] for name in ("rates", "inside", "outside", "balanced_until", "crowded")},
        **{name: state[name] for name in ("growth", "windows", "tokens_digest")},
    }


RANKS_ACTING = [name for name in SAME if one_of(name) in ACTS]


@pytest.mark.parametrize("name", rest_slow(RANKS_ACTING, SHORT))
def test_the_monitor_acts_over_ranks_as_in_one_process(places: tuple[Path, Path], name: str) -> None:
    """T13, T14, T36 over ranks: the same acts after the same steps, and the same state of them in the checkpoint.

    Other tests compare the curves with those of one process, and the states of the two ranks.
    """
    one, two = places[0] / "runs" / one_of(name), places[1] / "runs" / name
    assert acts(one)
    assert [(step, [each.partition(":")[0] for each in acts_of_step]) for step, acts_of_step in acts(two)] == [
        (step, [each.partition(":")[0] for each in acts_of_step]) for step, acts_of_step in acts(one)
    ]
    assert remembered(two) == remembered(one)
    changed = {"slowed": "rates", "grown": "growth", "spread": "balanced_until"}[one_of(name)]
    assert remembered(two)[changed] not in ({}, 0, 1)


@SLOW
@pytest.mark.parametrize("name", ACTS)
def test_what_another_rank_than_the_first_reads_decides_nothing(places: tuple[Path, Path], name: str) -> None:
    """Rank 1 reads no alarm, and acts all the same as the first rank decides."""
    run = places[1] / "runs" / f"misread-{name}"
    digests = [(places[1] / f"misread-{name}.{rank}.digest").read_text() for rank in range(2)]
    assert digests[0] == digests[1]
    assert acts(run) == acts(places[1] / "runs" / f"{name}-replicate")


@SLOW
@pytest.mark.parametrize("name", ACTS)
def test_one_process_goes_on_with_what_the_monitor_of_two_did(places: tuple[Path, Path], name: str) -> None:
    half, whole = places[1] / "runs" / f"half-{name}", places[1] / "runs" / f"{name}-replicate"
    before = Path.cwd()
    try:
        os.chdir(places[1])
        training.resume(Run(half))
    finally:
        os.chdir(before)
    assert remembered(half) == remembered(whole)
    assert curves(half, "loss")[0] == pytest.approx(curves(whole, "loss")[0], abs=5e-6)
    assert [step for step, _ in acts(half)] == [step for step, _ in acts(whole)]


def outcomes(places: tuple[Path, Path], what: str) -> list[dict[str, Any]]:
    return [json.loads((places[1] / f"{what}.{rank}.json").read_text()) for rank in range(2)]


def test_nan_on_one_rank_is_seen_by_all(places: tuple[Path, Path]) -> None:
    """T30: a loss that is NaN on rank 1 alone, and a gradient that is infinite there alone, are skipped by both."""
    assert outcomes(places, "nan") == [{"step": 8, "exit_code": 0}] * 2
    records = read_metrics(places[1] / "runs" / "nan" / "metrics.jsonl")
    problems = {record["step"]: record["problem"] for record in records if record.get("skipped")}
    assert problems == {3: "the loss is not finite", 6: "the gradient is not finite"}
    digests = [(places[1] / f"nan.{rank}.digest").read_text() for rank in range(2)]
    assert digests[0] == digests[1]


def test_a_signal_at_one_rank_stops_all_after_the_same_step_and_saves_once(places: tuple[Path, Path]) -> None:
    assert outcomes(places, "sigterm") == [{"step": 3, "exit_code": 143}] * 2
    assert [path.name for path in (places[1] / "runs" / "sigterm" / "checkpoints").iterdir()] == ["step-000003"]


@SLOW
def test_the_clock_of_the_first_rank_ends_all(places: tuple[Path, Path]) -> None:
    assert outcomes(places, "clock") == [{"step": 8, "exit_code": 0}] * 2


@SLOW
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("exists", "exists already"),
        ("divides", "a step of 7 sequences does not divide among 2 ranks; .*as to 8"),
        ("five", "5 experts do not divide among 2 ranks"),
        ("dense", "there are no experts; --set trainer.parallel=shard"),
        ("compiled", "leave --compile out"),
        ("repeated", "model.recursion runs the same weights in several layers.*trainer.parallel=replicate"),
        ("full-blocking", "the disk is full"),
        ("full-background", "the disk is full"),
    ],
)
def test_a_refusal_ends_all_ranks_with_one_exit_code(places: tuple[Path, Path], what: str, message: str) -> None:
    """An error that only the first rank can see reaches the other as `FailedOnAnotherRank`, which prints nothing.

    Examples are a run that exists, and a full disk.
    """
    import re

    first, second = outcomes(places, what)
    assert re.search(message, first["message"])
    assert second["exit_code"] == first["exit_code"] == 1
    known_to_all = what in ("divides", "five", "dense", "compiled", "repeated")
    assert second["error"] == ("UserError" if known_to_all else "FailedOnAnotherRank")


def test_what_fails_on_another_rank_alone_ends_the_first_too(places: tuple[Path, Path]) -> None:
    first, second = outcomes(places, "lonely")
    assert (first["error"], second["error"]) == ("FailedOnAnotherRank", "UserError")
    assert first["exit_code"] == 1
