"""Draws a plot beside a model: wanted, but no reason to fail."""

from collections.abc import Callable
from pathlib import Path

import click

from ...contract.errors import UserError


def beside(folder: Path, what: str) -> Path:
    """Where the plot of an exported model goes by default."""
    absolute = folder.resolve()
    return absolute.with_name(f"{absolute.name}-{what}.png")


def draw(plot: Callable[[Path], None], path: Path, *, asked: bool) -> None:
    """Draw to `path`; where nobody asked for it, a note takes the place of an error."""
    try:
        plot(path)
    except (ModuleNotFoundError, OSError) as error:
        if asked and isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror}; choose another --plot FILE") from error
        if asked:
            raise
        reason = error.strerror if isinstance(error, OSError) else 'pip install "adaptive-lm[plot]"'
        click.echo(f"note: the plot was not drawn ({reason})", err=True)
    else:
        click.echo(f"plot: {path}", err=True)
