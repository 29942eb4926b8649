"""The config: what it accepts, and the words for what it does not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.config.explain import known_keys
from adaptive_lm.train.config.run_config import (
    RunConfig,
    make_config,
    parse_setting,
    read_recipe,
    recipe_names,
)
from adaptive_lm.train.run.differences import differences


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


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.dim=-4", "model.dim: found -4, expected greater than or equal to 8"),
        ("trainer.steps=many", "trainer.steps: found 'many', expected a valid integer"),
        ("trainer.max_seconds=.nan", "trainer.max_seconds: found nan"),
        ("trainer.precision=fp8", "trainer.precision: found 'fp8', expected 'auto', 'fp32' or 'bf16'"),
        ("trainer.device=gpu", "trainer.device: found 'gpu'"),
        ("trainer.micro_batches=3", "micro_batches \\(3\\) must divide batch_size \\(8\\)"),
        ("trainer.sequence_length=512", "longer than model.context_length \\(256\\)"),
        ("optimizer.lr=0", "optimizer.lr: found 0"),
        ("optimizer.kind=[sgd]", "optimizer.kind: found \\['sgd'\\], expected 'muon', 'adamw', 'lars' or 'sgd'"),
        ("schedule.kind=step", "schedule.kind: found 'step', expected 'wsd', 'cosine', 'constant' or 'sgdr'"),
        ("model=7", "model: found 7"),
    ],
)
def test_a_value_that_breaks_a_rule_is_named_with_field_value_and_rule(setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_config({}, [parse_setting(setting)])


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


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n"])
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content, "utf-8")
    with pytest.raises(UserError, match=r"r\.yaml"):
        read_recipe(str(path))


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
