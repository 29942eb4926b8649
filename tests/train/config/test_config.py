"""The config: what it accepts, and the messages for what it refuses."""

import ast
import inspect
import json
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.config.explain import known_keys
from adaptive_lm.train.config.gates import AnswerGate, BandGate, GatesConfig
from adaptive_lm.train.config.monitor import MonitorConfig
from adaptive_lm.train.config.origin import OriginConfig
from adaptive_lm.train.config.run_config import RunConfig, make_config, parse_setting, read_recipe, recipe_names
from adaptive_lm.train.config.trainer import TrainerConfig
from adaptive_lm.train.model.config.lora import LoraConfig
from adaptive_lm.train.optim import BatchChange, OptimizerConfig, ScheduleConfig
from adaptive_lm.train.run.differences import differences
from adaptive_lm.train.system.section import Section
from adaptive_lm.train.system.yaml_values import load_yaml


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_is_a_valid_config(name: str) -> None:
    assert make_config(read_recipe(name)).recipe == name


def test_the_issue_names_its_recipes() -> None:
    assert {"quickstart", "moe-57m", "science-qa"} <= set(recipe_names())


def test_a_printed_config_is_a_recipe_for_the_same_config(tmp_path: Path) -> None:
    config = make_config({"model": {"dim": 64}, "data": {"sources": ["x.txt"]}, "recipe": "mine"})
    path = tmp_path / "mine.yaml"
    path.write_text(config.to_yaml(), "utf-8")
    assert make_config(read_recipe(str(path))) == config


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_comes_back_from_its_printed_form(tmp_path: Path, name: str) -> None:
    config = make_config(read_recipe(name))
    path = tmp_path / f"{name}.yaml"
    path.write_text(config.to_yaml(), "utf-8")
    assert make_config(load_yaml(path.read_bytes())) == config
    assert make_config(load_yaml(path.read_bytes(), written=True)) == config


@pytest.mark.parametrize(
    "section",
    [
        *(RunConfig, TrainerConfig, MonitorConfig, GatesConfig, BandGate, AnswerGate, OriginConfig, LoraConfig),
        *(OptimizerConfig, ScheduleConfig, BatchChange),
    ],
    ids=lambda section: section.__name__,
)
def test_every_field_of_a_section_is_documented_below_it(section: type[Section]) -> None:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(tree, ast.ClassDef)
    fields = [(each, below) for each, below in pairwise(tree.body) if isinstance(each, ast.AnnAssign)]
    assert len(fields) == len(section.model_fields)
    for field, below in fields:
        documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        assert documented, f"{section.__name__}.{ast.unparse(field.target)} has no text below it"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("trainer.stesp", "trainer.steps"),
        ("trainner.steps", "trainer"),
        ("dim", "model.dim"),
        ("model.num_experts", "model.ffn.num_experts"),
        ("optimizer.learning_rate", "optimizer"),
        ("model.ffn.expert_dims", "model.ffn.expert_dim"),
    ],
)
def test_an_unknown_key_is_an_error_that_suggests_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"no key .*did you mean {nearest}"):
        make_config({}, [parse_setting(f"{key}=3")])


def test_a_dotted_key_in_a_file_is_shown_as_sections() -> None:
    with pytest.raises(UserError, match=r"^'trainer.steps' is a dotted key, .*write trainer: \{steps: \.\.\.\}"):
        make_config({"trainer.steps": 5})


def test_a_long_value_that_cannot_be_read_is_not_repeated() -> None:
    with pytest.raises(UserError) as refused:
        parse_setting(f"trainer.seed={'9' * 5000}")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.dim=-4", "model.dim: found -4, expected greater than or equal to 8"),
        ("trainer.steps=many", "trainer.steps: found 'many', expected a valid integer"),
        ("trainer=", "trainer: found None, expected a section: keys below it, each with a value; fill it or leave it"),
        ("data.sources=p.txt", r"found 'p.txt', expected a list, as in --set 'data.sources=\[a, b\]'"),
        (f"trainer.device={'x' * 5000}", r"trainer.device: found 'x{199}\.\.\., "),
        ("trainer.max_seconds=.nan", "trainer.max_seconds: found nan"),
        ("trainer.precision=fp8", "trainer.precision: found 'fp8', expected 'auto', 'fp32' or 'bf16'"),
        ("trainer.device=gpu", "trainer.device: found 'gpu'"),
        ("trainer.micro_batches=3", "micro_batches \\(3\\) must divide batch_size \\(8\\)"),
        ("trainer.sequence_length=512", "longer than model.context_length \\(256\\)"),
        ("optimizer.lr=0", "optimizer.lr: found 0"),
        ("optimizer.kind=[sgd]", "optimizer.kind: found \\['sgd'\\], expected 'muon', 'adamw', 'lars' or 'sgd'"),
        ("schedule.kind=step", "schedule.kind: found 'step', expected 'wsd', 'cosine', 'constant' or 'sgdr'"),
        ("model=7", "model: found 7"),
        ("trainer.steps=true", "trainer.steps: found True, expected a number"),
        ("optimizer.lr=true", "optimizer.lr: found True, expected a number"),
        ("model.dim=true", "model.dim: found True, expected a number"),
        ("gates.max_loss=false", "gates.max_loss: found False, expected a number"),
    ],
)
def test_a_value_that_breaks_a_rule_is_named_with_field_value_and_rule(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config({}, [parse_setting(setting)])


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e400", "1" + "0" * 30, "-1" + "0" * 400, "9" * 5000])
def test_no_field_takes_a_number_that_is_not_finite_or_too_large(number: str) -> None:
    for field in known_keys(RunConfig):
        for value in (number, f"[{number}, 1]"):
            with pytest.raises(UserError, match=rf"{field}\b.*(found|cannot be read)"):
                make_config({}, [parse_setting(f"{field}={value}")])


def test_text_that_looks_like_a_number_is_refused_with_quotes_that_help() -> None:
    with pytest.raises(UserError, match=r"parent: found 0\.001, expected text; .* --set 'parent=\"1e-3\"'"):
        make_config({}, [parse_setting("parent=1e-3")])
    assert make_config({}, [parse_setting('parent="1e-3"')]).parent == "1e-3"


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(UserError, match=r"(?s)model\.dim.*trainer\.stesp"):
        make_config({}, [parse_setting("model.dim=-4"), parse_setting("trainer.stesp=4")])


@pytest.mark.parametrize("setting", ["trainer.steps", "=3", "trainer.steps={"])
def test_a_setting_without_key_or_value_says_what_one_looks_like(setting: str) -> None:
    with pytest.raises(UserError, match="--set"):
        make_config({}, [parse_setting(setting)])


def test_settings_reach_into_sections_and_keep_the_rest() -> None:
    settings = ("model.ffn.num_experts=4", "optimizer.lr=1e-3", "trainer.tensorboard=false", "data.sources=[a, b@0.5]")
    config = make_config({"model": {"dim": 64}}, map(parse_setting, settings))
    assert (config.model.dim, config.model.ffn.num_experts, config.optimizer.lr) == (64, 4, 1e-3)
    assert config.data.sources == ("a", "b@0.5")
    assert config.trainer.tensorboard is False


@pytest.mark.parametrize(
    ("given", "steps", "max_seconds"),
    [
        ({"steps": 7}, 7, None),
        ({"max_seconds": 9}, None, 9),
        ({"steps": 7, "max_seconds": 9}, 7, 9),
        ({"seed": 1}, 100, 50),
        ({"max_seconds": None}, 100, None),
    ],
)
def test_naming_one_end_of_a_run_switches_the_other_of_the_recipe_off(
    given: dict[str, Any], steps: int | None, max_seconds: float | None
) -> None:
    config = make_config({"trainer": {"steps": 100, "max_seconds": 50}}, [{"trainer": given}])
    assert (config.trainer.steps, config.trainer.max_seconds) == (steps, max_seconds)


def test_a_run_without_an_end_is_refused() -> None:
    endless = {"trainer": {"steps": None, "max_seconds": None}}
    with pytest.raises(UserError, match="a run needs an end"):
        make_config(endless)
    staged = {"data": {"sources": [{"path": "a.txt", "epochs": 3}]}}
    assert make_config({**endless, **staged}).trainer.steps is None
    open_end = {"data": {"sources": [{"path": "a.txt", "epochs": 3}, "b.txt"]}}
    with pytest.raises(UserError, match="give every source its epochs"):
        make_config({**endless, **open_end})


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no recipe 'quickstrat'; did you mean quickstart\?.*moe-57m"):
        read_recipe("quickstrat")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: [", "line 1, column 5: expected the node content"),
        ("- 1\n- 2\n", "holds list, expected sections such as `trainer:`"),
        ("0", "holds int, expected sections"),
        ("a: \xff".encode("latin-1"), "cannot be read as YAML"),
        ("trainer:\n  seed: 7\n  seed: 8\n", "line 3, column 3: the key 'seed' is given twice, here and in line 2"),
        (
            "trainer:\n  steps: 500\nmodel:\n  dim: 32\ntrainer:\n  save: background\n",
            "line 5, column 1: the key 'trainer' is given twice, here and in line 1; keep one",
        ),
    ],
)
def test_a_recipe_that_is_no_mapping_or_names_a_key_twice_is_refused(
    tmp_path: Path, content: str | bytes, problem: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=rf"r\.yaml.*{problem}"):
        read_recipe(str(path))


@pytest.mark.parametrize("content", ["", "# nothing is set\n", "---\n"])
def test_an_empty_recipe_sets_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yaml").write_text(content, "utf-8")
    assert read_recipe(str(tmp_path / "r.yaml")) == {"recipe": "r"}


def test_the_home_folder_is_expanded_in_the_path_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("trainer: {steps: 7}\n", "utf-8")
    assert read_recipe("~/r.yaml")["trainer"] == {"steps": 7}
    with pytest.raises(UserError, match=r"no recipe .~nosuchuser/r\.yaml"):
        read_recipe("~nosuchuser/r.yaml")


@pytest.mark.parametrize(
    "text", ["###", " # ", "1e3", "010", "on", "a: b", "'", '"', "\\n", "\n\t", "[x", "é 🙂", "\u2028", "\x85 x", "~"]
)
def test_every_text_comes_through_a_setting_and_a_printed_config(tmp_path: Path, text: str) -> None:
    quoted = json.dumps(text, ensure_ascii=max(text) < "\U00010000")  # JSON splits what is above in two, YAML does not
    config = make_config({}, [parse_setting(f"data.end_marker={quoted}"), {"recipe": "r"}])
    assert config.data.end_marker == text
    (tmp_path / "r.yaml").write_text(config.to_yaml(), "utf-8")
    assert make_config(read_recipe(str(tmp_path / "r.yaml"))) == config


def test_a_hash_in_a_setting_begins_no_comment() -> None:
    config = make_config({}, [parse_setting("data.end_marker=###"), parse_setting("trainer.seed=010")])
    assert (config.data.end_marker, config.trainer.seed) == ("###", 10)
    with pytest.raises(UserError, match=r"cannot be read.*in quotes inside the shell's.*--set 'data.sources=\"text\"'"):
        parse_setting("data.sources=[a, #b]")


def test_differences_are_listed_except_for_what_a_resumed_run_may_change() -> None:
    before = make_config({})
    wanted = [
        parse_setting(s) for s in ("model.dim=64", "trainer.seed=5", "trainer.device=cpu", "trainer.eval_every=3")
    ]
    after = make_config({}, wanted)
    assert differences(before, after) == {"model.dim": (128, 64), "trainer.seed": (0, 5)}
    assert differences(before, make_config({}, [{"trainer": {"steps": 9}}])) == {}


def test_the_known_keys_are_the_keys_of_a_printed_config() -> None:
    def keys(nested: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for key, value in nested.items():
            found.add(prefix + key)
            if isinstance(value, dict):
                found |= keys(value, f"{prefix}{key}.")
        return found

    assert set(known_keys(RunConfig)) == keys(yaml.safe_load(RunConfig().to_yaml()))
