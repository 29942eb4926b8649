"""A conversation on a terminal: answers on stdout, all else on stderr."""

import sys

import click

from ..format.manifest import Manifest
from ..generation.render import show_summary, show_tokens
from ..generation.request import Token
from ..generation.summary import Summary
from ..terminal.text import console, printable


class Terminal:
    """Shows answers as they come, and their cost below.

    Args:
        manifest: Of the model.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._ended = True

    def answer(self, text: str) -> None:
        """Show more of an answer."""
        safe = printable(text, lines=True) if sys.stdout.isatty() else text
        click.echo(safe, nl=False)
        sys.stdout.flush()
        self._ended = safe.endswith("\n")

    def answered(self, tokens: list[Token], summary: Summary, usage: str) -> None:
        """End an answer, and show what it cost."""
        if not self._ended or not tokens:
            click.echo()
        self._ended = True
        if usage == "tokens":
            show_tokens(tokens, self.manifest)
        if usage != "none":
            show_summary(summary, self.manifest)

    def note(self, text: str) -> None:
        """Show something about the conversation."""
        console().print(text, style="dim", markup=False)

    def error(self, text: str) -> None:
        """Show why something was not done."""
        click.echo(f"error: {text}", err=True)
