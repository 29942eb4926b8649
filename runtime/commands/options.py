"""Options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    pass

Command = TypeVar("Command", bound=Callable[..., Any])


def _all(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def dial_options(command: Command) -> Command:
    """How much of the model to run: the fields of `Dial`."""
    return _all(command, (
        click.option("--compute", type=float, metavar="SHARE",
                     help="Share of the dense FLOPs, above 0 to 1, of a calibrated model."),
        click.option("--target-ms", type=float, metavar="MS",
                     help="Most compute that was measured to take at most this per token."),
        click.option("--target-loss", type=float, metavar="NATS",
                     help="Least compute that was measured to lose at most this per token."),
        click.option("--agreement", type=float, metavar="SHARE",
                     help="Leave early only so far that this share of tokens chooses as if none left."),
        click.option("--experts", type=float, metavar="N", help="Wanted average of experts per token and layer."),
        click.option("--heads", type=float, metavar="N", help="Wanted average of heads per token and layer."),
        click.option("--layers-share", type=float,
                     help="Wanted share of tokens that run each layer with a router."),
        click.option("--router-top-p", type=float, help="Expert threshold, 0 to 1; 1 keeps every expert."),
        click.option("--head-top-p", type=float, help="Head threshold, 0 to 1; 1 uses every head."),
        click.option("--depth-threshold", type=float, help="Layer threshold, 0 to 1; 0 runs every layer."),
        click.option("--exit-threshold", type=float, help="Sureness at which a token leaves early; 1 is never."),
    ))  # fmt: skip


def model_options(command: Command) -> Command:
    """Which model, and where it runs."""
    return _all(command, (
        click.option("--model", metavar="FOLDER", help="Exported model; by default the newest under runs/."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        click.option("--threads", type=int,
                     help="Threads of one operator; by default one per core, one for a small model."),
        click.option("--verify/--no-verify", default=True, help="Compare the files with their digests first."),
    ))  # fmt: skip


def check_plot(path: str | None) -> None:
    """Refuse a plot in a form that nobody draws."""
    if path and Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise click.BadParameter(f"found {path!r}, expected a name ending in .png, .svg or .pdf", param_hint="--plot")


@contextmanager
def utf8_stdout() -> Iterator[None]:
    """A character that the terminal's encoding lacks becomes `?`, not an error in the middle of a text."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    yield
