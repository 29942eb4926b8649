"""The options of the commands: every range in a help text is the range that is accepted."""

import math
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support.cases import each

from adaptive_lm.contract.errors import WrongUsageError
from adaptive_lm.runtime import Params
from adaptive_lm.runtime.calibration.calibrate import CalibrateParams
from adaptive_lm.runtime.commands.options.common import PATH
from adaptive_lm.runtime.evaluation.params import EvalParams, TaskParams
from adaptive_lm.runtime.generation.search.best_of import check_best_of
from adaptive_lm.runtime.generation.search.settings import BeamSettings
from adaptive_lm.runtime.inspection.inspect import InspectParams
from adaptive_lm.runtime.measuring.bench import BenchParams
from adaptive_lm.serve.cli import group

RANGES = {
    "above 0, at most 1": ((1e-9, 1), (0, 1.001, -0.5)),
    "above 0, below 1": ((1e-9, 0.999), (0, 1)),
    "0.01 to 100": ((0.01, 100), (0.009, 101)),
    "0 to 1,000,000": ((0, 1e6), (-1e-9, 1e6 + 1)),
    "0 to 2^64 - 1": ((0, 2**64 - 1), (-1, 2**64)),
    "-2 to 2": ((-2, 0, 2), (-2.001, 2.001)),
    "0 to 20": ((0, 20), (-1, 21)),
    "0 to 10": ((0, 10), (-1e-9, 10.001)),
    "0 to 1": ((0, 1), (-1e-9, 1.001)),
    "at least 0": ((0, 10), (-1,)),
    "at least 1": ((1, 100), (0,)),
    "at least 2": ((2, 100), (1,)),
    "at least 512": ((512,), (511,)),
    "above 0": ((1e-9, 5), (0, -1)),
}
"""Phrase of a help text -> accepted values, refused values. The first phrase that a help text contains counts."""


def best_of(best_of: int) -> None:
    check_best_of(Params(), best_of)


SEARCH: dict[str, Callable[..., object]] = {
    "beams": BeamSettings,
    "beam_margin": BeamSettings,
    "length_penalty": BeamSettings,
    "best_of": best_of,
}


def eval_params(**option: float) -> object:
    return TaskParams(tasks=("a",), **option) if option.keys() & {"limit", "num_fewshot"} else EvalParams(**option)


PARAMS: dict[str, Callable[..., object]] = {
    "generate": Params,
    "bench": BenchParams,
    "calibrate": CalibrateParams,
    "eval": eval_params,
    "inspect": InspectParams,
}
DIAL = {"compute", "target_ms", "target_loss", "agreement", "experts", "heads", "layers_share", "router_top_p",
        "router_ratio", "head_top_p", "depth_threshold", "exit_threshold"}  # fmt: skip
CASES = [
    (command, option.name, phrase)
    for command in PARAMS
    for option in group.get_command(click.Context(group), command).params  # type: ignore[union-attr]
    if isinstance(option, click.Option)
    and isinstance(option.type, click.types.FloatParamType | click.types.IntParamType)
    for phrase in [next((one for one in RANGES if one in (option.help or "").lower()), None)]
    if option.name not in ("threads", "batch") and not (command != "generate" and option.name in DIAL)
]


@each(("command", "name", "phrase"), CASES)
def test_the_help_states_the_range_that_is_accepted(command: str, name: str, phrase: str | None) -> None:
    assert phrase is not None, "the help states no range"

    def make(value: float) -> None:
        SEARCH.get(name, PARAMS[command])(
            **{name: (value,) if (command, name) == ("calibrate", "agreement") else value}
        )

    accepted, refused = RANGES[phrase]
    for value in accepted:
        make(value)
    for value in (*refused, *([] if phrase.startswith("at least") else [math.nan])):
        with pytest.raises(WrongUsageError, match=f"found {name} "):
            make(value)


@click.command()
@click.option("--file", type=PATH)
def show(file: Path) -> None:
    click.echo(repr(file))


@pytest.mark.parametrize(
    ("given", "expected"),
    [("~/a.txt", "/home/of/a.txt"), ("a~b", "a~b"), ("~unknown-user", "~unknown-user")],
)
def test_the_home_folder_is_expanded_in_every_path(given: str, expected: str) -> None:
    result = CliRunner().invoke(show, [f"--file={given}"], env={"HOME": "/home/of"})
    assert result.stdout == f"{Path(expected)!r}\n"


@each(
    ("command", "option"),
    [("bench", "text"), ("bench", "plot_path"), ("calibrate", "data"), ("calibrate", "plot_path"), ("inspect", "data"),
     ("inspect", "plot_path"), ("inspect", "html_path"), ("export", "out"), ("eval", "data"), ("eval", "include_path"),
     ("eval", "plot_path")],
)  # fmt: skip
def test_every_option_that_takes_a_file_expands_it(command: str, option: str) -> None:
    found = group.get_command(click.Context(group), command)
    assert found is not None
    assert next(one.type for one in found.params if one.name == option) is PATH
