"""Options that several commands share."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from ...contract.errors import WrongUsageError

Command = TypeVar("Command", bound=Callable[..., Any])


class ExpandedPath(click.Path):
    """A path in which `~` is the home folder, also where no shell has expanded it, as in `--text=~/a.txt`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expand `~` before click checks the path."""
        return super().convert(os.path.expanduser(value), param, ctx)  # noqa: PTH111 - keeps `~x` of an unknown user


PATH = ExpandedPath(path_type=Path)


def _apply(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def dial_options(command: Command) -> Command:
    """Add the options that set how much of the model runs: the fields of `Dial`."""
    return _apply(command, (
        click.option("--compute", type=float, metavar="SHARE",
                     help="Share of the dense FLOPs to execute, above 0, at most 1; for a calibrated model."),
        click.option("--target-ms", type=float, metavar="MS",
                     help="Use the most compute that takes at most MS per token, as measured by calibrate; above 0."),
        click.option("--target-loss", type=float, metavar="NATS",
                     help="Use the least compute with a loss of at most NATS, as measured by calibrate; above 0."),
        click.option("--agreement", type=float, metavar="SHARE",
                     help="Leave early as long as this share of tokens stays the same; above 0, below 1."),
        click.option("--experts", type=float, metavar="N",
                     help="Average number of experts per token and layer, at least 1; by default as trained."),
        click.option("--heads", type=float, metavar="N",
                     help="Average number of heads per token and layer, at least 1; by default as trained."),
        click.option("--layers-share", type=float, metavar="SHARE",
                     help="Share of tokens that run each layer with a depth router, 0 to 1; by default as trained."),
        click.option("--router-top-p", type=float, metavar="MASS",
                     help="Probability mass that a token's experts reach, above 0, at most 1; 1 keeps every expert."),
        click.option("--router-ratio", type=float, metavar="RATIO",
                     help="Least score of an expert, relative to a token's first, 0 to 1; 0 keeps all candidates."),
        click.option("--head-top-p", type=float, metavar="MASS",
                     help="Probability mass that a token's heads reach, 0 to 1; 1 keeps every head."),
        click.option("--depth-threshold", type=float, metavar="SCORE",
                     help="Score from which a token runs a layer, 0 to 1; 0 runs every layer."),
        click.option("--exit-threshold", type=float, metavar="SCORE",
                     help="Confidence above which a token leaves early, 0 to 1; 1 never leaves."),
    ))  # fmt: skip


def model_options(command: Command) -> Command:
    """Add the options that set the model, its device, its target and its threads."""
    return _apply(command, (
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
