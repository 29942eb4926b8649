"""The benchmark `pays`: equal models, equal training, honest comparisons, and a run that can be stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.model import Transformer

FOLDER = Path(__file__).parents[2] / "benchmarks"


def pages(path: Path, count: int) -> Path:
    text = "The sun rises over the river, and stone {0} sleeps beside house {1}. Bird {2} sings to the trees. " * 12
    lines = [json.dumps({"text": f"Page {n}. " + text.format(n * 7 % 11, n % 5, n % 3)}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_no_page_is_in_two_parts_and_the_last_twentieth_is_held_out(tmp_path: Path) -> None:
    texts = import_module("payoff.text").split(pages(tmp_path / "pages.jsonl", 400), tmp_path / "work")
    train = [json.loads(line)["text"] for line in texts.train.read_text("utf-8").splitlines()]
    scored = [json.loads(line)["text"] for line in texts.scored.read_text("utf-8").splitlines()]
    calibration = texts.calibration.read_text("utf-8").split("\n\n")
    starts = [text.split(".")[0] for text in (*train, *scored, *calibration)]
    assert starts == [f"Page {n}" for n in range(400)]
    assert (len(train), len(scored), len(calibration)) == (380, 15, 5)


def test_too_few_pages_are_refused_with_the_number_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 79 pages, expected at least 80"):
        import_module("payoff.text").split(pages(tmp_path / "pages.jsonl", 79), tmp_path / "work")
    import_module("payoff.text").split(pages(tmp_path / "pages.jsonl", 80), tmp_path / "work")


def configs(folder: Path, size: str, equal_hidden: int) -> dict[str, RunConfig]:
    entrants = import_module("payoff.entrants")
    texts = import_module("payoff.text").Texts(
        *(folder / name for name in ("train.jsonl", "scored.jsonl", "calibration.txt"))
    )
    more = {"trainer": {"steps": 9}, "model": {"vocab_size": entrants.SIZES[size].vocabulary}}
    return {
        entrant: make_config(entrants.recipe(entrant, entrants.SIZES[size], texts, equal_hidden), [more])
        for entrant in entrants.ENTRANTS
    }


def test_every_model_uses_as_many_weights_as_the_dense_one_of_its_size(tmp_path: Path) -> None:
    entrants = import_module("payoff.entrants")
    size = entrants.SIZES["tiny"]
    half, third = (
        entrants.active_weights(dim, layers, hidden, size.vocabulary)
        for dim, layers, _, hidden in (size.half, size.third)
    )
    smaller = {entrants.HALF: half, entrants.TOP_P_HALF: half, entrants.THIRD: third}
    expected = {entrants.EQUAL: size.active(96)} | smaller
    for entrant, config in configs(tmp_path, "tiny", 96).items():
        weights = {name: each for name, each in Transformer(config.model).named_parameters() if each.ndim > 1}
        used = sum(
            weight.numel() * (entrants.USED / entrants.EXPERTS if weight.ndim == 3 else 1)
            for name, weight in weights.items()
            if "router" not in name and name != "embedding.weight"
        )
        assert used == expected.get(entrant, size.active()), entrant


@pytest.mark.parametrize("size", ["3m", "10m"])
def test_recipes_of_a_size_differ_only_where_the_models_differ(tmp_path: Path, size: str) -> None:
    recipes = configs(tmp_path, size, 992)
    for section in ("data", "tokenizer", "optimizer", "schedule", "trainer", "monitor"):
        assert len({json.dumps(getattr(each, section).model_dump(mode="json")) for each in recipes.values()}) == 1, (
            section
        )
    experts = {each.model.ffn.expert_dim for each in recipes.values() if each.model.ffn.routing != "dense"}
    assert {width % 16 for width in experts} == {0}, "the experts would not run in C++"


def test_the_hidden_width_is_that_of_the_time_wanted() -> None:
    choose = import_module("payoff.twin").choose
    times = {448: 0.9, 896: 1.3, 1344: 1.7, 1792: 2.1}
    assert choose(1.5, times, 896) == 1120
    assert choose(0.1, times, 896) == 448
    assert choose(99.0, times, 896) == 3584
    assert choose(1.5, dict.fromkeys(times, 1.0) | {448: 1.2}, 896) == 896


def row(entrant: str, milliseconds: float, nats: float, seed: int = 0, point: str = "trained") -> Any:
    rounds = (milliseconds, 1.1 * milliseconds)
    return import_module("payoff.measurement").Row(
        entrant=entrant, seed=seed, precision="int8", point=point, steps=100, nats=nats, bits=nats / 2, flops=2e7,
        experts=1.0, layers=6.0, bytes=1e7, weights=2 * 10**7, milliseconds=milliseconds, low=milliseconds,
        high=milliseconds, rounds=rounds,
    )  # fmt: skip


def test_a_dense_model_that_is_slower_and_worse_than_another_is_no_rival() -> None:
    report = import_module("payoff.report")
    rows = [row("dense, half", 1.0, 3.6), row("dense", 4.0, 3.4), row("dense, equal time", 5.0, 3.5)]
    dense = report.points(rows, "int8")
    assert report.dense_at(dense, 2.0) == pytest.approx(3.5)
    assert report.dense_at(dense, 9.0) == pytest.approx(3.4)
    assert report.dense_at(dense, 0.9) is None


def test_the_rivals_of_the_best_adaptive_model_are_the_dense_ones_that_are_not_slower() -> None:
    rivals = import_module("payoff.report").rivals
    rows = [row("dense", 4.0, 3.3), row("dense, equal time", 2.05, 3.4), row("dense, half", 1.0, 3.5)]
    adaptive = [row("top-p of 8", 2.0, 3.35), row("top-2 of 8", 3.0, 3.36), row("top-p of 8", 1.0, 3.0, point="0.5")]
    assert rivals(rows + adaptive) == ("top-p of 8", "dense, equal time", "dense, half")
    assert rivals([row("dense", 4.0, 3.3), row("dense, half", 3.0, 3.5), *adaptive]) == ("top-p of 8", "dense, half")
    assert rivals(rows) == ()


@pytest.mark.parametrize(("nats", "answer"), [(3.37, "it pays"), (3.39, "it does not pay")])
def test_it_pays_from_two_hundredths_of_a_nat_on(nats: float, answer: str) -> None:
    report = import_module("payoff.report")
    rows = [row("dense", 2.0, 3.395), row("top-p of 8", 2.0, nats)]
    assert report.verdicts(rows)[-1].endswith(answer)
    assert f"{abs(3.395 - nats):.3f} nats better" in report.verdicts(rows)[0]


def test_an_adaptive_model_faster_than_every_dense_one_is_not_compared() -> None:
    rows = [row("dense", 2.0, 3.395), row("top-p of 8", 1.5, 3.4)]
    (line,) = [one for one in import_module("payoff.report").verdicts(rows) if one.startswith("int8")]
    assert line.endswith("no dense model here is as fast")


def test_the_best_is_compared_with_each_rival_seed_by_seed_within_a_round() -> None:
    rows = [
        row("dense", 2.0, 3.4),
        row("dense", 2.0, 3.5, seed=2),
        row("dense, half", 4.0, 3.6),
        row("top-2 of 8", 1, 3),
    ]
    rows += [row("top-p of 8", 1.0, 3.3), row("top-p of 8", 1.0, 3.2, seed=1)]
    assert import_module("payoff.report").paired(rows, ("top-p of 8", "dense", "dense, half")) == [
        "seed 0: top-p of 8 3.300 nats, dense 3.400; 0.50 (0.50 to 0.50) of its time",
        "seed 0: top-p of 8 3.300 nats, dense, half 3.600; 0.25 (0.25 to 0.25) of its time",
    ]


def test_a_training_is_complete_when_its_last_step_is_saved_whether_or_not_it_was_evaluated(tmp_path: Path) -> None:
    training = import_module("payoff.training")
    assert training.steps_of(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "val_loss": null}\n{"step": 2', encoding="utf-8")
    assert training.steps_of(tmp_path) == 10
    (tmp_path / "checkpoints" / "step-000010").mkdir(parents=True)
    assert not training.is_complete(tmp_path, 12)
    (tmp_path / "checkpoints" / "step-000012").mkdir()
    assert training.is_complete(tmp_path, 12)
    assert training.steps_of(tmp_path) == 12


def test_without_the_text_one_line_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "pays.py"), "--data", str(tmp_path / "none.jsonl"), "--work"]
    done = subprocess.run([*command, str(tmp_path / "work")], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.startswith("skipped: there is no ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_and_ends_with_table_verdict_and_plot(tmp_path: Path) -> None:
    work, data = tmp_path / "work", pages(tmp_path / "pages.jsonl", 160)
    command = [sys.executable, str(FOLDER / "pays.py"), "--data", str(data), "--work", str(work), "--size", "tiny"]
    command += ["--minutes", "0.03", "--seeds", "1", "--tokens", "512", "--rounds", "2", "--jobs", "2"]
    command += ["--only", "top-p of 8", "--only", "dense"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "training" in line and "steps from step 0" in line:
                break
        else:
            pytest.fail("no training began")
        records = work / "runs" / "dense-0" / "metrics.jsonl"
        while process.poll() is None and not (records.exists() and records.read_text().count("\n") > 0):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert "SIGTERM: stopped; the same command goes on" in rest
    assert process.returncode == 130

    measured = {name: (work / f"{name}.json").read_bytes() for name in ("twin", "steps", "length")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert {name: (work / f"{name}.json").read_bytes() for name in measured} == measured
    costs = json.loads(measured["steps"])["value"]
    report = json.loads((work / "pays.json").read_text("utf-8"))
    for entrant in ("top-p of 8", "dense"):
        steps = {each["steps"] for each in report["rows"] if each["entrant"] == entrant}
        assert steps == {int(60 * 0.03 / costs[entrant]["seconds"])}
    assert {each["entrant"] for each in report["rows"]} == {"top-p of 8", "dense"}
    assert all(each["milliseconds"] > 0 and 0 < each["nats"] < 7 for each in report["rows"])
    dial = [each for each in report["rows"] if each["entrant"] == "top-p of 8" and each["precision"] == "int8"]
    assert len(dial) > 8
    assert "| top-p of 8 | 1 |" in done.stdout
    assert "int8: top-p of 8, " in done.stdout
    assert (work / "pays.png").read_bytes().startswith(b"\x89PNG")

    again = subprocess.run([*command, "--minutes", "0.06"], capture_output=True, text=True, env=environment)
    assert again.returncode == 1
    assert "made with other settings" in again.stderr
