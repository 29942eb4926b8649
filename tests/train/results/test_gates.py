"""Gates: conditions on a finished run, and the best run if they do not hold."""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from tokenizers import Tokenizer

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import group
from adaptive_lm.train import training
from adaptive_lm.train.config.gates import GatesConfig
from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.data.tokenizers.tokenizers import char_tokenizer
from adaptive_lm.train.loop.trainer import Trainer
from adaptive_lm.train.loop.update import Update
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.results import examine
from adaptive_lm.train.results.greedy import greedy_answer
from adaptive_lm.train.results.lineage import best_in_lineage
from adaptive_lm.train.results.summary import summary
from adaptive_lm.train.results.verdict import REPORT, Measurements, Report, Verdict, judge, norms_in_span, read_report
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]
Train = Callable[..., training.Outcome]


@pytest.fixture
def train(tiny_config: Make, folder: Path, display: Progress) -> Train:
    """Train a run of a few steps with gates."""

    def begin(name: str, parent: str | None = None, steps: int = 3, **gates: Any) -> training.Outcome:
        config = tiny_config(gates=gates, trainer={"steps": steps}, **({"parent": parent} if parent else {}))
        return training.begin(config, named_run(name), display=display)

    return begin


def typed(*arguments: str) -> Result:
    return CliRunner().invoke(group, arguments)


def measured(**facts: Any) -> Measurements:
    usual: dict[str, Any] = {
        "losses": {"held_out": 1.0, "training": 2.0},
        "experts_per_token": 1.5,
        "records": [],
    }
    return Measurements(**{**usual, **facts})


def passed(gates: dict[str, Any], **facts: Any) -> bool:
    (verdict,) = judge(GatesConfig.model_validate(gates), measured(**facts))
    return verdict.passed


# --- each gate


def test_the_loss_that_the_gates_name_is_compared_with_its_limit() -> None:
    assert passed({"max_loss": 1.0})
    assert not passed({"max_loss": 0.999})
    assert not passed({"max_loss": 1.5, "loss": "training"})
    assert passed({"max_loss": 2.0, "loss": "training"})


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_fails_every_gate(loss: float | None) -> None:
    assert not passed({"max_loss": 99}, losses={"held_out": loss})
    assert not passed({"no_worse_than_parent": True}, losses={"held_out": loss}, baselines={"p": 99.0})


def test_a_run_must_not_be_worse_than_its_parent_or_the_best_of_the_lineage() -> None:
    gate = {"no_worse_than_parent": True}
    assert passed(gate, baselines={"p": 1.0})  # equal is not worse
    assert not passed(gate, baselines={"p": 0.9})
    assert not passed(gate, baselines={"p": 2.0, "best": 0.9})
    assert not passed(gate, baselines={"p": 2.0, "best": None})  # a loss that was not measured cannot be compared
    assert not passed(gate, baselines={})


@pytest.mark.parametrize(("used", "holds"), [(1.29, False), (1.3, True), (1.8, True), (1.81, False), (None, False)])
def test_experts_stay_between_the_least_and_the_most(used: float | None, holds: bool) -> None:
    assert passed({"experts_per_token": [1.3, 1.8]}, experts_per_token=used) is holds


def records(norms: list[float], **others: list[Any]) -> list[dict[str, Any]]:
    """Return records of a run whose schedule goes from 0 to 1."""
    columns = {
        "first_block_grad_norm": norms,
        "schedule_progress": [(i + 0.5) / len(norms) for i in range(len(norms))],
        "warmup": [min((i + 0.5) / len(norms) / 0.1, 1.0) for i in range(len(norms))],
        "loss": [1.0] * len(norms),
        **others,
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_the_band_is_the_ratio_of_the_95th_percentile_to_the_5th() -> None:
    even = [1.0 + i / 100 for i in range(101)]  # 1.00 to 2.00: 1.95 over 1.05
    for most, holds in ((1.95 / 1.05 + 1e-6, True), (1.95 / 1.05 - 1e-3, False)):
        gate = {"gradient_band": {"most": most, "start": 0.0}}
        assert passed(gate, records=records(even)) is holds


def test_the_span_begins_where_the_warm_up_ends_and_ends_before_the_loss_is_below() -> None:
    found = records([float(i) for i in range(20)], loss=[2.0] * 14 + [0.29] + [0.31] * 5)
    assert norms_in_span(found, 0.1, 0.3) == [float(i) for i in range(2, 14)]
    assert norms_in_span(found, 0.1, None) == [float(i) for i in range(2, 20)]
    restarted = [*found, *records([9.0] * 4)]  # the schedule of another stage begins: the span continues
    assert len(norms_in_span(restarted, 0.5, None)) == 14
    wild = [1e6, 1e6, *[1.0] * 12, *[1e-6] * 6]
    assert passed(
        {"gradient_band": {"most": 1.1, "until_loss": 0.3}}, records=records(wild, loss=[2.0] * 14 + [0.2] * 6)
    )


def test_skipped_steps_and_steps_without_a_norm_are_not_part_of_a_band() -> None:
    found = [*records([1.0] * 12), {"first_block_grad_norm": 99.0, "skipped": True}, {"first_block_grad_norm": None}]
    assert norms_in_span(found, 0.0, None) == [1.0] * 12


def test_a_band_of_a_few_steps_or_of_norms_of_0_fails() -> None:
    assert not passed({"gradient_band": {"most": 99, "start": 0}}, records=records([1.0] * 9))
    assert passed({"gradient_band": {"most": 99, "start": 0}}, records=records([1.0] * 10))
    assert not passed({"gradient_band": {"most": 99, "start": 0}}, records=records([0.0] * 10))


def test_an_answer_is_compared_without_regard_to_white_space() -> None:
    gate = {"answer": {"prompt": "?", "contains": "a  star of\ngas"}}
    assert passed(gate, answer=" The sun is a star\n of gas.")
    assert not passed(gate, answer=" The sun is a stone")
    assert not passed(gate, answer=None)


# --- the section


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ({"experts_per_token": [2.0, 1.5]}, r"expected the smaller first, as in \[1\.5, 2\.0\]"),
        ({"experts_per_token": [float("nan"), 2]}, "gates.experts_per_token"),
        ({"max_loss": float("inf")}, "gates.max_loss"),
        ({"no_worse_than_parent": True}, "needs a parent: name its run"),
        ({"gradient_band": {"most": 0.5}}, "gates.gradient_band.most"),
        ({"answer": {"prompt": "x"}}, "gates.answer.contains"),
        ({"max_los": 1}, r"did you mean gates\.max_loss"),
    ],
)
def test_gates_that_make_no_sense_are_refused(gates: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_config({"gates": gates})


def test_a_parent_must_have_the_name_of_a_run() -> None:
    for name in ("../up", "a/b", ""):
        with pytest.raises(UserError, match="parent"):
            make_config({"parent": name})


# --- at the end of a run


def test_gates_that_hold_are_reported_and_the_run_ends_with_0(train: Train) -> None:
    outcome = train("a", max_loss=100.0, experts_per_token=[1, 4])
    assert (outcome.exit_code, outcome.complete) == (0, True)
    written = json.loads(Path("runs/a/gates.json").read_text())
    assert (written["passed"], written["best"], written["parent"], written["step"]) == (True, "a", None, 3)
    assert [(each["gate"], each["passed"]) for each in written["verdicts"]] == [
        ("max_loss", True),
        ("experts_per_token", True),
    ]
    assert outcome.evaluation is not None
    assert written["verdicts"][0]["found"] == outcome.evaluation.loss
    assert read_report(Path("runs/a")) == outcome.report
    assert not list(Path("runs/a").glob(".*.tmp"))


def test_a_failed_gate_ends_with_1_and_leaves_the_parent_as_the_best(train: Train) -> None:
    assert train("a").report is None  # it has no gates
    outcome = train("b", parent="a", max_loss=0.01, experts_per_token=[1, 4])
    assert (outcome.exit_code, outcome.complete) == (1, True)
    assert outcome.report is not None
    assert (outcome.report.failed, outcome.report.best) == (["max_loss"], "a")
    assert best_in_lineage(Path("runs/b")) == Path("runs/a")
    again = train("c", parent="b", max_loss=0.01)
    assert again.report is not None
    assert again.report.best == "a"  # b did not become the best
    assert best_in_lineage(Path("runs/c")) == Path("runs/a")
    assert train("d", parent="c", max_loss=100.0).exit_code == 0
    assert best_in_lineage(Path("runs/d")) == Path("runs/d")


def test_a_run_must_not_be_worse_than_its_parent(train: Train) -> None:
    train("long", steps=20)
    worse = train("short", parent="long", no_worse_than_parent=True)
    assert (worse.exit_code, worse.report and worse.report.best) == (1, "long")
    equal = train("same", parent="long", steps=20, no_worse_than_parent=True)
    assert equal.exit_code == 0
    rival = train("rival", parent="short", steps=10, no_worse_than_parent=True)
    assert rival.evaluation is not None
    losses = {name: summary(Path("runs") / name).val_loss for name in ("long", "short")}
    assert losses["long"] < rival.evaluation.loss < losses["short"]  # type: ignore[operator]
    assert rival.exit_code == 1  # better than its parent, which was not the best of its lineage


def test_the_first_blocks_gradient_is_logged_as_it_was_before_clipping(tiny_config: Make, train: Train) -> None:
    train("a", steps=12, gradient_band={"most": 1.0, "start": 0.0})
    logged = read_metrics(Path("runs/a/metrics.jsonl"))
    norms = [record["first_block_grad_norm"] for record in logged]
    assert len(norms) == 12
    assert all(0 < norm <= record["grad_norm"] for norm, record in zip(norms, logged, strict=True))
    places = [record["schedule_progress"] for record in logged]
    assert places == pytest.approx([(step + 0.5) / 12 for step in range(12)])
    report = read_report(Path("runs/a"))
    assert report is not None
    assert report.failed == ["gradient_band"]
    assert float(report.verdicts[0].found or 0) > 1.0


def test_the_norm_of_the_first_block_is_that_of_its_gradients_alone(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    true: list[float] = []
    clip = Update.clip

    def look(self: Any) -> float:
        grads = [p.grad for name, p in self.model.named_parameters() if name.startswith("layers.0.")]
        true.append(float(torch.cat([grad.flatten() for grad in grads if grad is not None]).norm()))
        return clip(self)

    monkeypatch.setattr(Update, "clip", look)
    config = tiny_config(trainer={"steps": 4, "log_every": 2}, optimizer={"clip_norm": 1e-3})
    training.begin(config, named_run("a"), display=display)
    norms = [record["first_block_grad_norm"] for record in read_metrics(Path("runs/a/metrics.jsonl"))]
    assert norms == pytest.approx(true[1::2], rel=1e-5)  # those of the logged steps


def test_the_answer_is_that_of_the_trained_model(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def answer(*arguments: Any) -> str:
        asked.append(arguments[2:])
        return greedy_answer(*arguments)

    monkeypatch.setattr(examine, "greedy_answer", answer)
    outcome = train("a", steps=40, answer={"prompt": "the sun ", "contains": "rises", "max_tokens": 60})
    assert asked == [("the sun ", 60, "fp32", 0)]
    assert outcome.report is not None
    (verdict,) = outcome.report.verdicts
    tokenizer, found = Tokenizer.from_file("runs/a/tokenizer.json"), load_checkpoint("runs/a")
    model = Transformer(found.config.model)
    model.load_state_dict(found.model_state)
    model.eval()
    ids = tokenizer.encode("the sun ").ids
    with torch.no_grad():
        for _ in range(60):
            ids.append(int(model(torch.tensor([ids[-32:]])).logits[0, -1].argmax()))
    said = tokenizer.decode(ids[len("the sun ") :], skip_special_tokens=False).partition("<|endoftext|>")[0]
    assert verdict.found == " ".join(said.split())
    assert verdict.passed is ("rises" in said)
    assert said


def test_an_answer_ends_where_the_text_ends_and_leaves_the_model_training() -> None:
    tokenizer = char_tokenizer(iter(["abc"]))
    config = make_config({"model": {
        "vocab_size": tokenizer.get_vocab_size(), "context_length": 8, "dim": 16, "num_layers": 1, "num_heads": 2,
        "num_kv_heads": 1, "ffn": {"routing": "dense", "dim": 16},
    }}).model  # fmt: skip
    model = Transformer(config).train()
    said = [tokenizer.token_to_id(each) for each in ("b", "a", "<|endoftext|>", "c")]
    lengths: list[int] = []

    def forward(ids: torch.Tensor) -> Any:
        lengths.append(ids.shape[1])
        logits = torch.zeros(1, ids.shape[1], config.vocab_size)
        logits[0, -1, said[len(lengths) - 1]] = 1
        return type("Out", (), {"logits": logits})

    model.forward = forward  # type: ignore[method-assign, assignment]
    assert greedy_answer(model, tokenizer, "abcabc", 20, "fp32") == "ba"
    assert lengths == [6, 7, 8]
    assert model.training
    lengths.clear()
    assert greedy_answer(model, tokenizer, "abcabcabc", 1, "fp32") == "b"
    assert lengths == [8]  # no longer than the context


# --- when they are examined


def test_a_run_that_is_stopped_is_not_judged_until_it_is_complete(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    config = tiny_config(gates={"max_loss": 100.0})
    stopped = training.begin(config, named_run("a"), stop_at=4, display=display)
    assert (stopped.report, stopped.exit_code) == (None, 0)
    assert not Path("runs/a/gates.json").exists()
    assert best_in_lineage(Path("runs/a")) is None
    assert summary(Path("runs/a")).report is None
    done = training.resume(named_run("a"), display=display)
    assert done.report is not None
    assert done.report.passed


def test_other_gates_for_a_complete_run_are_examined_without_training(
    train: Train, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("a")
    before = load_checkpoint("runs/a")
    monkeypatch.setattr(Update, "step", lambda *_: pytest.fail("it was trained"))
    stricter = [{"gates": {"max_loss": 0.01}}]
    outcome = training.resume(named_run("a"), stricter, display=display)
    assert (outcome.exit_code, outcome.step) == (1, 3)
    assert not summary(Path("runs/a")).holds
    again = training.resume(named_run("a"), stricter, display=display)  # the report is reused
    assert (again.exit_code, again.report) == (1, outcome.report)
    after = load_checkpoint("runs/a")
    assert all(torch.equal(value, after.model_state[name]) for name, value in before.model_state.items())


def test_a_run_that_ended_by_the_clock_is_not_trained_on_for_its_gates(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(trainer={"steps": None, "max_seconds": 0.5})
    step = training.begin(config, named_run("a"), display=display).step
    monkeypatch.setattr(Update, "step", lambda *_: pytest.fail("it was trained"))
    outcome = training.resume(named_run("a"), [{"gates": {"max_loss": 100.0}}], display=display)
    assert (outcome.step, outcome.complete, outcome.exit_code) == (step, True, 0)


def test_a_run_that_goes_on_is_judged_again_and_keeps_no_old_report(train: Train, display: Progress) -> None:
    train("a", max_loss=100.0)
    longer = [{"trainer": {"steps": 6}}]
    training.resume(named_run("a"), longer, stop_at=4, display=display)
    assert not Path("runs/a/gates.json").exists()
    outcome = training.resume(named_run("a"), display=display)
    assert outcome.report is not None
    assert (outcome.report.step, outcome.report.passed) == (6, True)


def test_gates_that_a_signal_prevented_are_examined_by_a_resume(
    train: Train, display: Progress, story: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "finish", lambda self: None)
        outcome = train("a", max_loss=100.0)
    assert (outcome.report, outcome.complete) == (None, True)
    assert "the gates were not examined; examine them: adaptive train --resume --name a" in story.getvalue()
    assert not summary(Path("runs/a")).holds
    done = training.resume(named_run("a"), display=display)
    assert done.report is not None
    assert summary(Path("runs/a")).holds


@pytest.mark.parametrize(
    ("parent", "gates", "words"),
    [
        ("b", {}, "has itself as its parent"),
        ("nix", {}, r"the parent runs/nix does not exist.*--set parent=null"),
        ("half", {"no_worse_than_parent": True}, r"not complete but 'stopped'.*--resume --name half"),
    ],
)
def test_a_run_that_could_not_be_judged_is_refused_before_anything_is_deleted_or_trained(
    tiny_config: Make, train: Train, display: Progress, parent: str, gates: dict[str, Any], words: str
) -> None:
    train("b")
    training.begin(tiny_config(), named_run("half"), stop_at=1, display=display)
    config = tiny_config(parent=parent, gates=gates)
    with pytest.raises(UserError, match=words):
        training.begin(config, named_run("b"), overwrite=True, display=display)
    assert load_checkpoint("runs/b").step == 3


def test_a_parent_with_another_text_is_noted(
    tiny_config: Make, train: Train, display: Progress, story: io.StringIO, text_file: Path
) -> None:
    train("a")
    train("b", parent="a", no_worse_than_parent=True)
    assert "another text" not in story.getvalue()
    Path("other.txt").write_text(text_file.read_text()[300:])
    config = tiny_config(
        parent="a", gates={"no_worse_than_parent": True}, data={"sources": ["other.txt"]}, trainer={"steps": 3}
    )
    training.begin(config, named_run("c"), display=display)
    assert "note: a had another text or tokenizer" in story.getvalue()


def test_a_parent_that_was_deleted_fails_the_gate_and_not_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("a")
    finish = Trainer.finish

    def delete(self: Any) -> Any:
        shutil.rmtree("runs/a")
        return finish(self)

    monkeypatch.setattr(Trainer, "finish", delete)
    outcome = train("b", parent="a", no_worse_than_parent=True)
    assert (outcome.exit_code, outcome.report and outcome.report.best) == (1, None)


# --- old runs, and files


def test_a_config_and_a_checkpoint_from_before_gates_load_and_go_on(train: Train, display: Progress) -> None:
    """T23."""
    train("a")
    path = load_checkpoint("runs/a").path
    state = json.loads((path / "state.json").read_text())
    old = yaml.safe_load(Path("runs/a/config.yaml").read_text())
    for config in (state["config"], old):
        del config["gates"], config["parent"]
    Path("runs/a/config.yaml").write_text(yaml.safe_dump(old))
    data = json.dumps(state).encode()
    (path / "state.json").write_bytes(data)
    complete = json.loads((path / "complete.json").read_text())
    complete["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "complete.json").write_text(json.dumps(complete))
    assert load_checkpoint("runs/a").path == path
    assert make_config(old) == load_checkpoint("runs/a").config
    found = summary(Path("runs/a"))
    assert (found.gated, found.parent, found.report, found.holds) == (False, None, None, True)
    assert typed("runs").exit_code == 0
    assert training.resume(named_run("a"), [{"trainer": {"steps": 4}}], display=display).step == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 2}', '{"format_version": 1, "verdicts": 3}'])
def test_a_report_that_cannot_be_read_counts_as_missing(train: Train, content: str) -> None:
    train("a", max_loss=100.0)
    assert best_in_lineage(Path("runs/a")) == Path("runs/a")
    Path("runs/a", REPORT).write_text(content)
    assert read_report(Path("runs/a")) is None
    assert best_in_lineage(Path("runs/a")) is None  # without a report its gates do not hold


def test_a_cycle_of_parents_has_no_best_run(train: Train) -> None:
    for name in "ab":
        train(name, max_loss=0.01)
        config = yaml.safe_load(Path(f"runs/{name}/config.yaml").read_text())
        Path(f"runs/{name}/config.yaml").write_text(yaml.safe_dump({**config, "parent": "ab".replace(name, "")}))
    assert best_in_lineage(Path("runs/a")) is None


def test_a_number_that_json_cannot_hold_is_written_as_null() -> None:
    (verdict,) = judge(GatesConfig(max_loss=1), measured(losses={"held_out": float("nan")}))
    report = Report(1, None, None, {}, (verdict,))
    assert json.loads(report.to_json())["verdicts"][0]["found"] is None
    assert str(verdict) == "FAIL  max_loss: not measured, expected held_out loss of at most 1"
    assert str(Verdict("answer", True, "so", '"so" in it')) == 'pass  answer: "so", expected "so" in it'


# --- as it is typed


@pytest.fixture
def recipe(tiny: dict[str, Any], folder: Path) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny, "trainer": {**tiny["trainer"], "steps": 3}}))
    return "tiny.yaml"


def test_train_runs_and_compare_report_the_gates(recipe: str) -> None:
    assert "gates" not in typed("train", recipe, "--name", "a").stderr
    assert "gates" not in typed("runs").stdout  # there are none
    gates = ("--set", "parent=a", "--set", "gates.max_loss=0.01", "--set", "gates.experts_per_token=[1,4]")
    done = typed("train", recipe, "--name", "b", *gates)
    assert done.exit_code == 1
    assert done.stdout == "runs/b\n"  # the run exists, though a gate failed
    lines = done.stderr.splitlines()
    assert any(
        re.fullmatch(r"FAIL  max_loss: \d\.\d+, expected held_out loss of at most 0\.01", line) for line in lines
    )
    assert any(re.fullmatch(r"pass  experts_per_token: \d\.\d+, expected 1 to 4", line) for line in lines)
    assert "gates: 1 of 2 failed; a stays the best" in lines
    head, _, second = typed("runs").stdout.splitlines()
    assert head.split()[-2:] == ["gates", "parent"]
    assert second.split()[-3:] == ["FAIL:", "max_loss", "a"]
    objects = [json.loads(line) for line in typed("runs", "--json").stdout.splitlines()]
    assert [one["parent"] for one in objects] == [None, "a"]
    assert [one["gates"] and one["gates"]["passed"] for one in objects] == [None, False]
    table = [line.split() for line in typed("compare", "a", "b").stdout.splitlines()]
    assert ["best", "in", "lineage", "a", "a"] in table
    assert any(row[:3] == ["max_loss", "-", "FAIL"] for row in table)
    found = json.loads(typed("compare", "a", "b", "--json").stdout)["runs"]
    assert [one["best"] for one in found] == ["a", "a"]


def test_a_long_gate_takes_two_lines_of_compare_and_is_whole_in_json(recipe: str) -> None:
    wanted = "mountains " * 30
    asked = ("--set", f"gates.answer={{prompt: The, contains: {wanted}}}", "--set", "gates.max_loss=100")
    for name in ("a", "b"):
        assert typed("train", recipe, "--name", name, *asked).exit_code == 1
    lines = typed("compare", "a", "b").stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.split() == ["gate", "a", "b"])
    last = next(number for number, line in enumerate(lines) if line.startswith("best in lineage"))
    rows = lines[first + 1 : last]
    assert [row.split()[0] for row in rows] == ["max_loss", "expected", "answer", "expected"]
    assert rows[1].count("held_out loss of at most 100") == 2  # what fits is whole
    assert rows[3].count("…") == 2
    assert max(map(len, rows)) <= 200
    (verdict,) = [
        each
        for each in json.loads(typed("compare", "a", "--json").stdout)["runs"][0]["gates"]["verdicts"]
        if each["gate"] == "answer"
    ]
    assert verdict["expected"] == f'"{wanted.strip()}" in it'


def test_gates_that_hold_are_shown_as_pass_and_exit_with_0(recipe: str) -> None:
    done = typed("train", recipe, "--name", "a", "--set", "gates.max_loss=100")
    assert done.exit_code == 0
    assert "failed" not in done.stderr
    assert typed("runs").stdout.splitlines()[1].split()[-1] == "pass"
