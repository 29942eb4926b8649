"""Options that several commands share."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import click

from ....contract.errors import WrongUsageError

Command = TypeVar("Command", bound=Callable[..., Any])


class ExpandedPath(click.Path):
    """A path in which `~` is the home folder, also where no shell has expanded it, as in `--text=~/a.txt`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expand `~` before click checks the path."""
        return super().convert(os.path.expanduser(value), param, ctx)  # noqa: PTH111 - keeps `~x` of an unknown user


PATH = ExpandedPath(path_type=Path)


def apply_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """Add options to a command, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


DIAL = (
    ("--compute", "SHARE", "Share of the dense FLOPs to execute, above 0, at most 1; for a calibrated model."),
    ("--target-ms", "MS", "Use the most compute that takes at most MS per token, as measured by calibrate; above 0."),
    ("--target-loss", "NATS", "Use the least compute with a loss of at most NATS, as measured by calibrate; above 0."),
    ("--agreement", "SHARE", "Leave early as long as this share of tokens stays the same; above 0, below 1."),
    ("--experts", "N",
     "Average number of experts per token and layer, at least 1 where every token has one; by default as trained."),
    ("--heads", "N", "Average number of heads per token and layer, at least 1; by default as trained."),
    ("--layers-share", "SHARE",
     "Share of tokens that run each layer with a depth router, 0 to 1; by default as trained."),
    ("--router-top-p", "MASS",
     "Probability mass that a token's experts reach, above 0, at most 1; 1 keeps every expert."),
    ("--router-ratio", "RATIO",
     "Least score of an expert, relative to a token's first, 0 to 1; 0 keeps all of its candidates."),
    ("--head-top-p", "MASS", "Probability mass that a token's heads reach, 0 to 1; 1 keeps every head."),
    ("--depth-threshold", "SCORE", "Score from which a token runs a layer, 0 to 1; 0 runs every layer."),
    ("--exit-threshold", "SCORE", "Confidence above which a token leaves early, 0 to 1; 1 never leaves."),
)  # fmt: skip
"""The options that set how much of the model runs, one for each field of `Dial`: name, unit and help."""


class Numbers(click.ParamType):  # type: ignore[type-arg] # generic in the newest click alone
    """Numbers with commas between them, such as `1,0.7,0.5`."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(one) for one in str(value).split(","))
        except ValueError:
            self.fail(f"found {value!r}, expected numbers with commas between them, such as 1,0.7,0.5", param, ctx)


def dial_options(command: Command) -> Command:
    """Add the options that set how much of the model runs: the fields of `Dial`."""
    return apply_options(
        command, [click.option(name, type=float, metavar=unit, help=text) for name, unit, text in DIAL]
    )


def dial_points_options(command: Command) -> Command:
    """Add the same options, each of which takes several values: the points of `dial_points`."""
    return apply_options(command, [
        click.option(name, type=Numbers(), multiple=True, metavar=f"{unit}[,{unit}...]", help=text,
                     callback=lambda ctx, param, values: tuple(chain.from_iterable(values)))
        for name, unit, text in DIAL
    ])  # fmt: skip


def dial_points(values: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Return the settings of each point: one for each value of the option that has several."""
    given = {name: each for name, each in values.items() if each}
    several = [name for name, each in given.items() if len(each) > 1]
    if len(several) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in several[:2])
        raise click.UsageError(f"found several values of {first} and of {second}; give several of one of them")
    fixed = {name: each[0] for name, each in given.items() if len(each) == 1}
    return [fixed | {several[0]: value} for value in given[several[0]]] if several else [fixed]


def model_options(command: Command) -> Command:
    """Add the options that set the model, its device, its target and its threads."""
    return apply_options(command, (
        click.option("--model", metavar="MODEL",
                     help="Folder of an exported model, or name of its run; by default the newest under runs/."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                     help="auto takes CUDA if it works."),
        click.option("--target", type=click.Choice(["auto", "portable", "cpu", "cuda"]), default="auto",
                     show_default=True, help="Graph of the model to run; auto takes the fastest that works here."),
        click.option("--threads", type=int, metavar="N",
                     help="Threads of one operator, at least 1; by default one per core, or one for a small model."),
        click.option("--verify/--no-verify", default=True, show_default=True,
                     help="First check the files of the model against their digests."),
    ))  # fmt: skip


def timed_text_options(command: Command) -> Command:
    """Add the options that set the prompt and the tokens over which the points of a dial are timed."""
    return apply_options(command, (
        click.option("--prompt-tokens", type=int, default=32, show_default=True,
                     help="Timing: length of the prompt, at least 1."),
        click.option("--new-tokens", type=int, default=64, show_default=True,
                     help="Timing: tokens to decode after the prompt, at least 1."),
    ))  # fmt: skip


def check_plot(path: Path | None) -> None:
    """Refuse a suffix in which no plot can be drawn."""
    if path and path.suffix not in (".png", ".svg", ".pdf"):
        raise click.BadParameter(
            f"found {str(path)!r}, expected a name ending in .png, .svg or .pdf", param_hint="--plot"
        )


@contextmanager
def option_names() -> Iterator[None]:
    """Replace the parameter in a message by its option: "found top_k 0, ..." becomes "found --top-k 0, ..."."""
    try:
        yield
    except WrongUsageError as error:
        name, _, rest = str(error).removeprefix("found ").partition(" ")
        if name not in click.get_current_context().params:
            raise
        raise WrongUsageError(f"found --{name.replace('_', '-')} {rest}") from None
