"""What a command prints of one text: the text on stdout as it is generated, notes and the cost on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..dial import Dial
    from ..generation.engine import Engine
    from ..generation.request import Request, Token
    from ..generation.summary import Summary


def warn(engine: Engine, dial: Dial) -> None:
    """Warn on stderr if the graph or the point of a calibrated model differs from what the user may expect."""
    if engine.session.note:
        click.echo(f"note: {engine.session.note}", err=True)
    if not dial.calibrated:
        return
    from ..dial import warnings_for
    from ..measuring.machine import describe

    for line in warnings_for(engine.manifest, dial, describe(engine.session)):
        click.echo(f"note: {line}", err=True)


def print_text(texts: Iterable[str], *, strip: bool, as_json: bool) -> bool:
    """Generate a text, and write it to stdout unless a JSON object follows; return whether Ctrl-C ended it.

    Args:
        texts: The text of each token, as they are generated.
        strip: Leave out the white space before an answer.
        as_json: Print nothing.
    """
    try:
        if as_json:
            for _ in texts:
                pass
        else:
            stream(texts, strip=strip)
    except KeyboardInterrupt:
        if not as_json:
            click.echo()
        return True
    return False


def stream(texts: Iterable[str], *, strip: bool) -> None:
    """Write the text to stdout as it is generated, with a line end at its end.

    Args:
        texts: The text of each token, as they are generated.
        strip: Leave out the white space before an answer.
    """
    begun, ended = not strip, False
    for one in texts:
        text = one if begun else one.lstrip()
        if text:
            begun, ended = True, text.endswith("\n")
            click.echo(text, nl=False)
            sys.stdout.flush()
    if not ended:
        click.echo()


def report(
    engine: Engine,
    request: Request,
    tokens: Sequence[Token],
    summary: Summary,
    *,
    usage: str,
    content: dict[str, Any] | None,
) -> None:
    """Print a JSON object on stdout, or the cost on stderr.

    Args:
        engine: The model.
        request: What was generated.
        tokens: Its tokens.
        summary: Its figures.
        usage: What to report about the compute: "none", "summary" or "tokens".
        content: The JSON object; None prints the cost.
    """
    if request.drafting_verdict:
        click.echo(f"note: {request.drafting_verdict}", err=True)
    if content is not None:
        click.echo(json.dumps(content))
        return
    if usage == "none":
        return
    from ..generation.render import show_summary, show_tokens

    if usage == "tokens":
        show_tokens(tokens, engine.manifest)
    show_summary(summary, engine.manifest)
