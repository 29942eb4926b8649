"""Everything around the loop: the run's folder, the lock, the files beside the checkpoints (T9, T10)."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.loop.setup import run_files
from adaptive_lm.train.loop.setup.run_files import require_space
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run, newest_run, next_run
from adaptive_lm.train.run.metrics import KEYS, Metrics, read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]


def test_a_run_leaves_all_that_export_and_people_need(
    tiny_config: Make, folder: Path, display: Progress, text_file: Path
) -> None:
    outcome = training.begin(tiny_config(trainer={"tensorboard": True}), named_run("a"), display=display)
    run = Path("runs/a")
    assert outcome.complete
    stored = make_config(yaml.safe_load((run / "config.yaml").read_text()))
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    assert stored == load_checkpoint(run).config
    assert stored.model.vocab_size == tokenizer.get_vocab_size()
    heldout = (run / "heldout.txt").read_text()
    assert heldout
    assert text_file.read_text().rstrip().endswith(heldout.rstrip())
    made_by = json.loads((run / "versions.json").read_text())["sessions"][0]
    assert {"adaptive_lm", "torch", "numpy", "python", "platform", "threads", "precision"} <= set(made_by)
    assert list((run / "tensorboard").glob("events.*"))
    assert not (run / "chat_template.jinja").exists()
    steps = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert steps == ["step-000005", "step-000010", "step-000012"]


def test_records_hold_their_keys_and_the_losses_by_name(tiny_config: Make, folder: Path, display: Progress) -> None:
    training.begin(tiny_config(), named_run("a"), display=display)
    records = read_metrics(Path("runs/a/metrics.jsonl"))
    assert [record["step"] for record in records] == list(range(1, 13))
    assert all(set(KEYS) <= set(record) for record in records)
    assert {"load_balancing_loss", "router_z_loss", "router_entropy_loss"} <= set(records[0])
    assert [record["step"] for record in records if record["val_loss"] is not None] == [5, 10, 12]
    last = records[-1]
    assert all(last[key] is not None for key in KEYS)
    bytes_per_token = last["val_loss"] / 0.6931471805599453 / last["bits_per_byte"]
    assert bytes_per_token == pytest.approx(1.0, abs=0.01)  # one character is one byte, but for the end of the text
    assert 1.0 <= last["experts_per_token"] <= 4.0
    assert last["layers_per_token"] == 2.0
    assert not any("heads" in key or "window" in key for key in last)  # this model does not choose them


def test_heads_and_windows_are_recorded_if_the_model_chooses_them(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    model = {"attention": {"window": 9}, "heads": {"routing": "top_k", "heads_per_token": 1}}
    training.begin(tiny_config(model=model), named_run("a"), display=display)
    last = read_metrics(Path("runs/a/metrics.jsonl"))[-1]
    assert (last["heads_per_token"], last["val_heads_per_token"]) == (1.0, 1.0)
    assert last["window"] == pytest.approx(9.0, abs=1e-4)
    assert last["val_window"] == pytest.approx(9.0, abs=1e-4)


def test_conversations_leave_their_chat_template(tiny_config: Make, folder: Path, display: Progress) -> None:
    lines = [json.dumps({"prompt": f"Where is stone {i}?", "completion": "Under the river."}) for i in range(60)]
    Path("chat.jsonl").write_text("\n".join(lines))
    config = tiny_config(data={"sources": ["chat.jsonl"], "loss_on": "answers"}, trainer={"steps": 2})
    training.begin(config, named_run("a"), display=display)
    assert "messages" in Path("runs/a/chat_template.jinja").read_text()


def test_sources_with_epochs_end_a_run_without_steps_or_seconds(
    tiny_config: Make, folder: Path, display: Progress, text_file: Path
) -> None:
    Path("other.txt").write_text(text_file.read_text()[:3000])
    sources = [{"path": str(text_file), "epochs": 1}, {"path": "other.txt", "epochs": 2}]
    data = {"sources": sources, "val": "other.txt"}
    config = tiny_config(data=data, trainer={"steps": None, "max_seconds": None, "batch_size": 16, "eval_every": 500})
    ring = len(text_file.read_text()) + 1
    outcome = training.begin(config, named_run("a"), stop_at=5, display=display)
    assert not outcome.complete
    outcome = training.resume(named_run("a"), display=display)
    assert outcome.complete
    assert outcome.step == -(-(ring // 32 + 2 * (3001 // 32)) // 16)
    assert outcome.trained_on
    assert load_checkpoint("runs/a").config.trainer.steps == outcome.step  # the schedule knew where it would end
    assert read_metrics(Path("runs/a/metrics.jsonl"))[-1]["lr"] < 0.1 * config.optimizer.lr


def test_each_stage_can_have_its_own_schedule(
    tiny_config: Make, folder: Path, display: Progress, text_file: Path
) -> None:
    Path("other.txt").write_text(text_file.read_text()[:3000])
    sources = [{"path": str(text_file), "epochs": 1}, {"path": "other.txt", "epochs": 2}]
    config = tiny_config(
        data={"sources": sources, "val": "other.txt"},
        schedule={"kind": "cosine", "each_stage": True, "warmup_share": 0.1},
        trainer={"steps": None, "max_seconds": None, "batch_size": 16, "eval_every": 500},
    )
    training.begin(config, named_run("a"), stop_at=18, display=display)
    assert training.resume(named_run("a"), display=display).complete
    rates = [record["lr"] for record in read_metrics(Path("runs/a/metrics.jsonl"))]
    border = (len(text_file.read_text()) + 1) // 32 // 16
    first, second = rates[:border], rates[border:]
    for stage in (first, second):
        assert stage[0] < 0.5 * config.optimizer.lr  # warms up
        assert max(stage) > 0.95 * config.optimizer.lr
        assert stage[-1] < 0.1 * config.optimizer.lr  # and comes down
        peak = stage.index(max(stage))
        assert stage[peak:] == sorted(stage[peak:], reverse=True)


@pytest.mark.parametrize(
    ("data", "trainer"),
    [
        ({}, {"steps": 9, "max_seconds": None}),
        ({"sources": [{"path": "a.txt", "epochs": 1}]}, {"steps": None, "max_seconds": 60.0}),
    ],
    ids=["no stages", "a clock"],
)
def test_a_schedule_for_each_stage_needs_stages_and_no_clock(data: dict[str, Any], trainer: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"schedule\.each_stage needs sources with epochs"):
        make_config({"schedule": {"each_stage": True}, "data": data, "trainer": trainer})


def test_zero_steps_write_the_initial_weights_and_nothing_else(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    config = tiny_config(trainer={"steps": 0}, model={"vocab_size": 100})
    outcome = training.begin(config, named_run("a"), display=display)
    found = load_checkpoint("runs/a")
    assert outcome.complete
    assert (outcome.evaluation, found.step) == (None, 0)
    assert found.model_state["embedding.weight"].shape == (100, 32)  # padded: the text has far fewer characters
    assert read_metrics(Path("runs/a/metrics.jsonl")) == []


def test_the_seed_decides_the_weights(tiny_config: Make, folder: Path, display: Progress) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        training.begin(tiny_config(trainer={"steps": 0, "seed": seed}), named_run(name), display=display)
    one, same, other = (load_checkpoint(f"runs/{name}").model_state["head.weight"] for name in "abc")
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tiny_config: Make, folder: Path, display: Progress) -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size is 5, but the tokenizer has \d+ tokens"):
        training.begin(tiny_config(model={"vocab_size": 5}), named_run("a"), display=display)


def test_a_text_shorter_than_a_window_is_an_error_before_training(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    Path("short.txt").write_text("A stone.\n" * 3)
    with pytest.raises(UserError, match=r"short\.txt"):
        training.begin(tiny_config(data={"sources": ["short.txt"]}), named_run("a"), display=display)


def test_an_existing_run_is_an_error_that_says_what_to_type(tiny_config: Make, folder: Path, display: Progress) -> None:
    training.begin(tiny_config(trainer={"steps": 1}), named_run("a"), display=display)
    with pytest.raises(UserError, match=r"exists already.*adaptive train --resume --name a.*--overwrite"):
        training.begin(tiny_config(), named_run("a"), display=display)
    assert training.begin(tiny_config(trainer={"steps": 2}), named_run("a"), overwrite=True, display=display).step == 2
    assert [path.name for path in Path("runs/a/checkpoints").iterdir()] == ["step-000002"]


def test_a_second_trainer_of_a_run_is_refused(tiny_config: Make, folder: Path, display: Progress) -> None:
    """T9: to begin, overwrite or resume it; the message names the process."""
    holder = named_run("a")
    with holder:
        for attempt in (
            lambda: training.begin(tiny_config(), named_run("a"), display=display),
            lambda: training.begin(tiny_config(), named_run("a"), overwrite=True, display=display),
            lambda: training.resume(named_run("a"), display=display),
        ):
            with pytest.raises(UserError, match=rf"runs/a is being trained by process {os.getpid()} on .* since"):
                attempt()
    assert training.begin(tiny_config(trainer={"steps": 1}), named_run("a"), display=display).complete


def test_a_folder_that_cannot_be_written_is_an_error_before_the_first_step(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T10: `runs` is a file, so not even root can write below it."""
    monkeypatch.setattr(
        "adaptive_lm.train.training.steps.prepare", lambda *_, **__: pytest.fail("the data was read first")
    )
    Path("runs").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write runs/a: .*Nothing was trained"):
        training.begin(tiny_config(), named_run("a"), display=display)


def test_a_disk_without_room_for_a_checkpoint_is_an_error(folder: Path) -> None:
    require_space(named_run("a"), 1000, lambda _: 12_000)
    with pytest.raises(UserError, match=r"runs/a: one checkpoint takes up to .* MiB, the disk has .* MiB; make room"):
        require_space(named_run("a"), 1000, lambda _: 11_999)


def test_the_room_for_a_checkpoint_is_checked_before_the_first_step(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(run_files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"one checkpoint takes up to .* MiB"):
        training.begin(tiny_config(), named_run("a"), display=display)


def test_a_disk_that_fills_up_during_the_metrics_is_an_error_and_not_a_traceback(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Metrics, "write", full)
    with pytest.raises(UserError, match="No space left on device"):
        training.begin(tiny_config(), named_run("a"), display=display)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "-flag", "a b"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        named_run(name)


def test_runs_without_a_name_are_numbered_and_the_newest_is_the_last_trained(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    with pytest.raises(UserError, match="there is no run"):
        newest_run()
    for _ in range(2):
        training.begin(tiny_config(trainer={"steps": 1}), next_run("The river's text"), display=display)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["The-river-s-text-1", "The-river-s-text-2"]
    os.utime("runs/The-river-s-text-1/metrics.jsonl", (time.time() + 9, time.time() + 9))
    assert newest_run().name == "The-river-s-text-1"
