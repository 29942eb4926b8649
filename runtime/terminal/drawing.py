"""Draw a plot. One that was not requested must not make a command fail."""

from collections.abc import Callable
from pathlib import Path

import click

from ...contract.errors import UserError


def beside(folder: Path, what: str) -> Path:
    """Return where the plot of an exported model goes by default."""
    absolute = folder.resolve()
    return absolute.with_name(f"{absolute.name}-{what}.png")


def draw(plot: Callable[[Path], None], path: Path, *, requested: bool) -> None:
    """Draw to `path`, and report it on stderr.

    Args:
        plot: Draws to the path it gets. May raise ModuleNotFoundError or OSError.
        path: Where to draw.
        requested: Whether the user gave the path. If not, a plot that cannot be drawn is a note, not an error.

    Raises:
        UserError: a requested plot cannot be written.
        ModuleNotFoundError: a requested plot needs a library that is not installed.
    """
    try:
        plot(path)
    except (ModuleNotFoundError, OSError) as error:
        if requested and isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror}; choose another --plot FILE") from error
        if requested:
            raise
        reason = error.strerror if isinstance(error, OSError) else 'pip install "adaptive-lm[plot]"'
        click.echo(f"note: the plot was not drawn ({reason})", err=True)
    else:
        click.echo(f"plot: {path}", err=True)
