"""Several tasks in one run: what is learned and measured of each, exact resumption, and where the figures are shown."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from adaptive_lm.train import training
from adaptive_lm.train.commands.runs import compare, runs
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.loop.figures.evaluate import Evaluation, over_tasks
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.losses import cross_entropy, training_loss
from adaptive_lm.train.results.summary import summary
from adaptive_lm.train.run.checkpoints.checkpoint import Checkpoint, load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]


@pytest.fixture
def texts(folder: Path, text_file: Path) -> list[dict[str, Any]]:
    """Write a text of sums beside that of words, and return the two as tasks."""
    generator = random.Random(1)
    numbers = [(generator.randrange(100), generator.randrange(100)) for _ in range(300)]
    Path("sums.txt").write_text("".join(f"{a}+{b}={a + b}\n" for a, b in numbers))
    return [{"name": "words", "sources": [str(text_file)]}, {"name": "sums", "sources": ["sums.txt"]}]


def trained(config: RunConfig, name: str, display: Progress, stops: tuple[int, ...] = ()) -> Checkpoint:
    run = named_run(name)
    ends = [*stops, None]
    outcome = training.begin(config, run, stop_at=ends[0], display=display)
    for stop in ends[1:]:
        assert not outcome.complete
        outcome = training.resume(run, stop_at=stop, display=display)
    assert outcome.complete
    return load_checkpoint(run.path)


def test_each_task_is_measured_in_training_and_on_its_held_out_text(
    tiny_config: Make, texts: list[dict[str, Any]], display: Progress
) -> None:
    config = tiny_config(data={"tasks": texts}, trainer={"final_eval_tokens": None})
    outcome = training.begin(config, named_run("a"), display=display)
    records = read_metrics(Path("runs/a/metrics.jsonl"))
    for record in records:
        losses = [record[f"loss/{name}"] for name in ("words", "sums") if f"loss/{name}" in record]
        assert losses
        assert min(losses) - 1e-5 <= record["loss"] <= max(losses) + 1e-5
        assert record["share/words"] + record["share/sums"] == pytest.approx(1)
    last = records[-1]
    for name in ("words", "sums"):
        assert 1 <= last[f"val_experts_per_token/{name}"] <= 4
        assert last[f"val_layers_per_token/{name}"] == 2
        assert last[f"bits_per_byte/{name}"] > 0
        assert math.isfinite(last[f"val_loss/{name}"])
    assert outcome.evaluation is not None
    assert outcome.evaluation.tasks.keys() == {"words", "sums"}
    one, other = outcome.evaluation.tasks.values()
    assert last["val_loss"] == pytest.approx(
        (one.loss * one.tokens + other.loss * other.tokens) / (one.tokens + other.tokens)
    )


def test_two_tasks_of_weight_one_train_as_the_same_two_sources(
    tiny_config: Make, texts: list[dict[str, Any]], display: Progress
) -> None:
    tasks = trained(tiny_config(data={"tasks": texts}), "tasks", display)
    plain = trained(tiny_config(data={"sources": [task["sources"][0] for task in texts]}), "plain", display)
    assert tasks.state["tokens_digest"] == plain.state["tokens_digest"]
    for name, tensor in plain.model_state.items():
        assert torch.equal(tensor, tasks.model_state[name]), name


@pytest.mark.parametrize("limit", [64, None])
def test_a_small_task_is_evaluated_on_as_many_tokens_as_a_large_one(
    tiny_config: Make, texts: list[dict[str, Any]], display: Progress, limit: int | None
) -> None:
    config = tiny_config(data={"tasks": texts}, trainer={"steps": 1, "final_eval_tokens": limit, "eval_tokens": 64})
    evaluation = training.begin(config, named_run("a"), display=display).evaluation
    assert evaluation is not None
    tokens = [one.tokens for one in evaluation.tasks.values()]
    assert (tokens == [32, 32]) == (limit == 64)


def test_the_loss_of_all_is_weighted_by_the_whole_held_out_texts() -> None:
    usage = {"experts_per_token": 2.0}
    parts = {"a": Evaluation(1.0, 0.0, usage, 10), "b": Evaluation(3.0, 0.0, {"experts_per_token": 4.0}, 10)}
    whole = over_tasks(parts, {"a": 300, "b": 100}, 2.0)
    assert whole is not None
    assert whole.loss == pytest.approx(1.5)
    assert whole.bits_per_byte == pytest.approx(1.5 / math.log(2) / 2)
    assert whole.experts_per_token == pytest.approx(2.5)
    assert whole.tokens == 20


def test_a_loss_weight_multiplies_the_gradient_of_the_task_alone(tiny_config: Make) -> None:
    config = tiny_config()
    torch.manual_seed(0)
    model = Transformer(config.model.model_copy(update={"vocab_size": 11}))
    ids, targets = torch.randint(11, (2, 4, 16))
    scored = torch.ones_like(ids, dtype=torch.bool)
    out = model(ids)
    weights = torch.tensor([0.0, 2.0, 1.0, 0.5])
    total, parts = training_loss(model, out, targets, scored, config.losses, task_weights=weights)
    plain, _ = training_loss(model, out, targets, scored, config.losses)
    rows = [cross_entropy(out.logits[i : i + 1], targets[i : i + 1], scored[i : i + 1]) for i in range(4)]
    assert parts["cross_entropy"].item() == pytest.approx(sum(row.item() for row in rows) / 4)
    expected = sum(w * row.item() for w, row in zip(weights.tolist(), rows, strict=True)) / 4
    assert (total - plain).item() == pytest.approx(expected - parts["cross_entropy"].item(), abs=1e-6)


def test_a_task_of_weight_zero_is_not_learned(
    tiny_config: Make, texts: list[dict[str, Any]], display: Progress
) -> None:
    def final(weight: float) -> float:
        tasks = [texts[0], texts[1] | {"loss_weight": weight}]
        config = tiny_config(data={"tasks": tasks}, trainer={"steps": 40})
        trained(config, f"weight-{weight}", display)
        loss: float = read_metrics(Path(f"runs/weight-{weight}/metrics.jsonl"))[-1]["val_loss/sums"]
        return loss

    assert final(0.0) > final(1.0) + 0.3


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"sampling": {"by": "progress", "every": 2, "window": 3}},
        pytest.param({"sampling": {"temperature": 3.0}, "pack": "documents"}, marks=pytest.mark.slow),
    ],
    ids=["by size", "by progress", "documents"],
)
def test_a_run_of_tasks_stopped_and_resumed_equals_a_run_in_one(
    tiny_config: Make, texts: list[dict[str, Any]], display: Progress, data: dict[str, Any]
) -> None:
    led = [texts[0] | {"token": "<|w|>"}, texts[1] | {"token": "<|s|>", "loss_weight": 0.5}]
    config = tiny_config(data={"tasks": led, **data}, trainer={"micro_batches": 2})
    one = trained(config, "whole", display)
    other = trained(config, "parts", display, (3, 8))
    assert one.state["tokens_digest"] == other.state["tokens_digest"]
    assert one.state.get("sampling") == other.state.get("sampling")
    assert ("sampling" in one.state) == ("by" in data.get("sampling", {}))
    for name, tensor in one.model_state.items():
        assert torch.equal(tensor, other.model_state[name]), name
    timed = ("seconds", "tokens_per_second")
    curves = [
        [{key: value for key, value in record.items() if key not in timed and "save" not in key} for record in records]
        for records in (read_metrics(one.run / "metrics.jsonl"), read_metrics(other.run / "metrics.jsonl"))
    ]
    assert [record["step"] for record in curves[0]] == [record["step"] for record in curves[1]]
    for before, after in zip(*curves, strict=True):
        assert {key: before.get(key) for key in before if "/" in key} == {
            key: after.get(key) for key in before if "/" in key
        }


def test_shares_by_progress_move_and_stay_above_the_floor(
    tiny_config: Make, texts: list[dict[str, Any]], display: Progress
) -> None:
    config = tiny_config(data={"tasks": texts, "sampling": {"by": "progress", "every": 2, "floor": 0.4}})
    trained(config, "a", display)
    records = read_metrics(Path("runs/a/metrics.jsonl"))
    seen = [record["share/sums"] for record in records]
    assert len(set(seen)) > 2
    assert min(seen) >= 0.4 * seen[0]


def test_several_lengths_and_progress_read_each_window_once(
    tiny_config: Make, texts: list[dict[str, Any]], display: Progress
) -> None:
    config = tiny_config(
        data={"tasks": texts, "sampling": {"by": "progress", "every": 2}}, trainer={"sequence_lengths": [16, 32]}
    )
    one, other = trained(config, "whole", display), trained(config, "parts", display, (5,))
    assert one.state["tokens_digest"] == other.state["tokens_digest"]
    assert one.state["sampling"] == other.state["sampling"]


def test_runs_and_compare_show_each_task(tiny_config: Make, texts: list[dict[str, Any]], display: Progress) -> None:
    trained(tiny_config(data={"tasks": texts}), "both", display)
    trained(tiny_config(data={"sources": texts[0]["sources"]}), "plain", display)
    one = summary(Path("runs/both"))
    last = read_metrics(Path("runs/both/metrics.jsonl"))[-1]
    assert one.tasks["sums"]["val_loss"] == last["val_loss/sums"]
    assert one.tasks["words"]["bits_per_byte"] == last["bits_per_byte/words"]
    listed = CliRunner().invoke(runs, ["--json"])
    figures = {each["name"]: each for each in map(json.loads, listed.stdout.splitlines())}
    assert figures["both"]["tasks"]["sums"]["val_loss"] == last["val_loss/sums"]
    assert figures["plain"]["tasks"] == {}
    shown = CliRunner().invoke(runs, []).stdout
    assert f"words {last['val_loss/words']:.4f}, sums {last['val_loss/sums']:.4f}" in shown
    table = CliRunner().invoke(compare, ["both", "plain", "--metric", "val_loss/"])
    assert table.exit_code == 0, table.output
    rows = {
        line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in table.stdout.splitlines() if "sums" in line
    }
    assert rows["sums val"] == [f"{last['val_loss/sums']:.4f}", "-"]
    assert "both sums" in table.stdout, "a curve for each task"


def test_the_tasks_are_written_for_the_inspection(
    tiny_config: Make, texts: list[dict[str, Any]], display: Progress
) -> None:
    led = [texts[0], texts[1] | {"token": "<|s|>"}]
    training.begin(tiny_config(data={"tasks": led}, trainer={"steps": 0}), named_run("a"), display=display)
    content = json.loads(Path("runs/a/tasks.json").read_text())
    assert [(one["name"], one["token"]) for one in content["tasks"]] == [("words", None), ("sums", "<|s|>")]
    assert content["tasks"][1]["heldout"].startswith("<|s|>") or "+" in content["tasks"][1]["heldout"]
