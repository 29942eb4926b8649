"""A recipe in stages: five runs, each the parent of the next, judged by their gates."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import group
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RECIPES, RunConfig, make_config, read_recipe
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.recipe_stages import NAMES, staged, stages_of
from adaptive_lm.train.results.summary import summary
from adaptive_lm.train.run.folder import Run

FACTS = ["Rivers carry water to the sea </s>", "Stones are hard and heavy </s>", "The sun is a star </s>"]
MOUNTAINS = "Mountains are formed through tectonic forces or volcanism over long geological time periods"
LINES = [
    f"User: How do mountains form? Assistant: {MOUNTAINS} </s>",
    "User: Where do rivers go? Assistant: Rivers carry their water to the sea </s>",
]
RUNS = ["baseline", "stage1", "stage2", "stage3", "stage4"]


def typed(*arguments: str) -> Result:
    return CliRunner().invoke(group, ["train", *arguments])


@pytest.fixture
def short(folder: Path) -> list[str]:
    """Shorten the recipe to five lines of data in its format and few epochs."""
    (folder / "pretraining_data.json").write_text(json.dumps(FACTS))
    (folder / "chat_training_data.json").write_text(json.dumps(LINES))
    sources = [{"path": f"{name}_data.json", "epochs": 2} for name in ("pretraining", "chat_training")]
    settings = [
        "data.cache_dir=cache", f"data.sources={json.dumps(sources)}", "trainer.threads=1", "trainer.batch_size=2",
        "trainer.tensorboard=false", "trainer.eval_every=1000",
    ]  # fmt: skip
    return ["science-qa", "--device", "cpu", *(part for each in settings for part in ("--set", each))]


def configs() -> dict[str, Any]:
    return {run.name: config for config, run in staged("science-qa", "all", "s", [])}


def test_the_stages_go_from_a_dense_model_to_the_whole_recipe_one_step_at_a_time() -> None:
    assert stages_of("science-qa") == list(NAMES)
    dense, experts, gentle, falling, whole = configs().values()
    assert (dense.model.ffn.routing, experts.model.ffn.routing) == ("dense", "top_p")
    assert experts.model_copy(update={"model": 0, "optimizer": 0, "gates": 0, "parent": 0, "recipe": 0}) == (
        dense.model_copy(update={"model": 0, "optimizer": 0, "gates": 0, "parent": 0, "recipe": 0})
    )
    rates = {"lr": 0, "adamw_lr": 0, "expert_turns": 0}  # the dense model has no experts
    assert experts.optimizer.model_copy(update=rates) == dense.optimizer.model_copy(update=rates)
    assert dense.optimizer.lr > experts.optimizer.lr > gentle.optimizer.lr
    assert gentle.model == falling.model == experts.model
    assert gentle.optimizer.bidirectional
    assert not experts.optimizer.bidirectional
    assert (gentle.schedule.warmup, gentle.schedule.kind) == ("exponential", "constant")
    assert (falling.schedule.kind, falling.schedule.each_stage) == ("cosine", True)
    assert falling.optimizer == gentle.optimizer
    assert not experts.trainer.batch_schedule
    (grown,) = gentle.trainer.batch_schedule
    assert grown.batch_size > gentle.trainer.batch_size
    assert falling.trainer == experts.trainer  # the falling rate takes the place of the larger batch
    recipe = make_config(read_recipe("science-qa"))
    assert whole.model == recipe.model
    assert (whole.optimizer, whole.schedule) == (recipe.optimizer, recipe.schedule)
    assert {config.data for config in configs().values()} == {recipe.data}  # or losses would not compare


def test_each_stage_has_its_gates_and_the_stage_before_as_its_parent() -> None:
    found = list(configs().values())
    assert [config.parent for config in found] == [None, "s-baseline", "s-stage1", "s-stage2", "s-stage3"]
    gates = [config.gates for config in found]
    assert [gate.max_loss for gate in gates] == [None, 0.40, 0.35, 0.30, 0.25]
    assert {gate.loss for gate in gates} == {"training"}  # the evaluation changes the order of the answers
    assert [gate.experts_per_token for gate in gates] == [None, *[(1.5, 2.0)] * 3, (1.3, 1.8)]
    assert [gate.no_worse_than_parent for gate in gates] == [False, True, True, True, True]
    bands = [gate.gradient_band and (gate.gradient_band.most, gate.gradient_band.until_loss) for gate in gates]
    assert bands == [None, None, *[(2.2, 0.3)] * 3]
    assert len({gate.answer for gate in gates}) == 1


@pytest.mark.parametrize("stage", NAMES)
def test_every_stage_stays_below_577_000_weights(stage: str) -> None:
    model = make_config(read_recipe(f"science-qa-{stage}")).model
    built = Transformer(model.model_copy(update={"vocab_size": 2615}))  # the words of the two files
    assert sum(weight.numel() for weight in built.parameters()) <= 577_000


@pytest.mark.parametrize("path", sorted(RECIPES.glob("science-qa*.yaml")), ids=lambda path: path.stem)
def test_every_hyperparameter_has_a_comment(path: Path) -> None:
    """A comment on its own line, or on that of the section that it completes."""
    bare = []
    explained: list[tuple[int, bool]] = []  # indentation and whether there is a comment, of the keys around
    for line in path.read_text("utf-8").splitlines():
        if line.lstrip().startswith("#") or not line.strip() or line.startswith("extends"):
            continue
        depth = len(line) - len(line.lstrip())
        explained = [(other, said) for other, said in explained if other < depth]
        said = " # " in line
        if not line.rstrip().endswith(":") and not said and not any(known for _, known in explained):
            bare.append(line.strip())
        explained.append((depth, said))
    assert bare == []


def test_all_stages_run_one_after_the_other_and_a_failed_gate_ends_with_1(short: list[str]) -> None:
    done = typed(*short, "--stage", "all", "--name", "s", "--set", "gates.max_loss=0.0001")
    assert done.exit_code == 1, done.output
    assert done.stdout.split() == [f"runs/s-{name}" for name in RUNS]
    found = [summary(Path("runs") / f"s-{name}") for name in RUNS]
    assert [one.state for one in found] == ["complete"] * 5
    assert [one.parent for one in found] == [None, "s-baseline", "s-stage1", "s-stage2", "s-stage3"]
    assert all(one.report is not None and "max_loss" in one.report.failed for one in found)
    assert [one.report.verdicts[-1].gate for one in found if one.report] == ["answer"] * 5
    assert done.stderr.endswith(f"next: adaptive compare {' '.join(f's-{name}' for name in RUNS)}\n")


def test_a_stage_needs_the_one_before_and_ends_with_0_if_its_gates_hold(short: list[str]) -> None:
    alone = typed(*short, "--stage", "1", "--name", "s")
    assert alone.exit_code == 1
    assert "the parent runs/s-baseline does not exist" in alone.stderr
    holds = ["--set", "gates.answer=null", "--set", "gates.max_loss=100", "--set", "gates.no_worse_than_parent=false"]
    assert typed(*short, "--stage", "baseline", "--name", "s", *holds).exit_code == 0
    done = typed(*short, "--stage", "1", "--name", "s", *holds, "--set", "gates.experts_per_token=null")
    assert done.exit_code == 0, done.output
    assert done.stdout == "runs/s-stage1\n"
    assert summary(Path("runs/s-stage1")).holds


def test_a_stage_can_be_stopped_and_says_how_to_resume_it(short: list[str]) -> None:
    done = typed(*short, "--stage", "baseline", "--stop-at", "2")
    assert done.exit_code == 0
    assert done.stdout == "runs/science-qa-baseline\n"  # without a name, that of the recipe
    assert "--resume --name science-qa-baseline" in done.stderr


def test_a_signal_in_a_stage_ends_all_stages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(config: RunConfig, run: Run, **_: Any) -> training.Outcome:
        return training.Outcome(run, 3, run.name != "s-stage1", exit_code=143 if run.name == "s-stage1" else 1)

    monkeypatch.setattr(training, "begin", begin)
    done = typed("science-qa", "--stage", "all", "--name", "s")
    assert (done.exit_code, done.stdout) == (143, "runs/s-baseline\nruns/s-stage1\n")
    assert "saved at step 3; resume with: adaptive train --resume --name s-stage1" in done.stderr


def test_a_failed_gate_of_one_stage_makes_the_exit_code_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(config: RunConfig, run: Run, **_: Any) -> training.Outcome:
        return training.Outcome(run, 3, True, exit_code=int(run.name == "s-stage1"))

    monkeypatch.setattr(training, "begin", begin)
    done = typed("science-qa", "--stage", "all", "--name", "s")
    assert (done.exit_code, len(done.stdout.split())) == (1, 5)


def test_the_config_of_a_stage_is_printed_with_its_parent(folder: Path) -> None:
    found = yaml.safe_load(typed("science-qa", "--stage", "2", "--print-config", "--set", "model.dim=64").stdout)
    assert (found["parent"], found["recipe"], found["model"]["dim"]) == ("science-qa-stage1", "science-qa-2", 64)
    assert make_config(found).gates.gradient_band is not None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["quickstart", "--stage", "1"], 1, "recipe 'quickstart' has no stages"),
        (["--stage", "1"], 2, "stages of a RECIPE"),
        (["science-qa", "--stage", "1", "--resume"], 2, "--resume --name NAME-stageN"),
        (["science-qa", "--stage", "all", "--print-config"], 2, "need one stage"),
        (["science-qa", "--stage", "5"], 2, "5"),
    ],
)
def test_mistakes_say_what_to_type(folder: Path, arguments: list[str], code: int, words: str) -> None:
    done = typed(*arguments)
    assert done.exit_code == code
    assert words in done.stderr


def test_a_recipe_may_extend_another_but_not_itself(folder: Path) -> None:
    Path("mine.yaml").write_text("extends: quickstart\ntrainer: {steps: 7}\n")
    found = read_recipe("mine.yaml")
    assert (found["trainer"], found["recipe"]) == ({**read_recipe("quickstart")["trainer"], "steps": 7}, "mine")
    Path("one.yaml").write_text("extends: other.yaml\n")
    Path("other.yaml").write_text("extends: one.yaml\n")
    with pytest.raises(UserError, match=r"'one\.yaml' extends itself"):
        read_recipe("one.yaml")
