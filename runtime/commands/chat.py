"""The command `adaptive chat`."""

from __future__ import annotations

import sys
from typing import Any

import click

from ...contract.errors import UserError
from .options.common import dial_options, model_options, option_names
from .options.sampling import sampling_options, typed
from .output import warn


@click.command(epilog="\b\nExample: adaptive chat --model demo --compute 0.6")
@click.option("--system", metavar="TEXT", help="Tell the model TEXT before the first turn.")
@click.option("--load", metavar="FILE", help="Go on with the conversation in FILE, which /save wrote.")
@click.option("--usage", type=click.Choice(["none", "summary", "tokens"]), default="summary", show_default=True,
              help="What to report about the compute of each answer, on stderr.")  # fmt: skip
@sampling_options
@dial_options
@model_options
@click.pass_context
def chat(
    ctx: click.Context, /, model: str | None, system: str | None, load: str | None, usage: str, device: str,
    target: str, threads: int | None, verify: bool, **settings: Any,
) -> None:  # fmt: skip
    """Talk with an exported model that was trained on conversations.

    Each answer is shown as it is generated, with the compute it took. Ctrl-C stops an answer and keeps what it has so
    far; Ctrl-D ends. Type /help for the commands: turn the dial, retry, save and load.

    Without a terminal, each line of stdin is a question, and stdout has the answers alone.
    """
    from ..generation.sampling.params import Params

    with option_names():  # before the model is opened, so that a wrong number is reported immediately
        Params(**settings)
    from ..conversation.chat import Chat
    from ..conversation.commands import COMMANDS, EndOfChat
    from ..conversation.history import History
    from ..conversation.reader import open_reader, questions
    from ..conversation.screen import Terminal
    from ..format.locate import find_model
    from ..generation.engine import load as open_model

    history = History(system)
    if load is not None:
        history.load(load)
        history.system = system or history.system
    folder = find_model(model)
    engine = open_model(folder, device=device, target=target, threads=threads, verify=verify)
    given = {name: value for name, value in settings.items() if name in typed(ctx)}
    name = folder.parent.name if folder.name == "model" else folder.name
    screen = Terminal(engine.manifest)
    talk = Chat(engine, screen, name=name, history=history, settings=given, usage=usage)
    warn(engine, talk.params())
    if sys.stdin.isatty():
        screen.note(f"{name}: ask something, or type /help; Ctrl-D ends")
    reader = open_reader([f"/{command}" for command in COMMANDS], talk.status)
    failed = False
    for question in questions(reader):
        try:
            talk.line(question)
        except EndOfChat:
            break
        except UserError as error:
            screen.error(str(error))
            failed = True
    if failed and not sys.stdin.isatty():
        ctx.exit(1)  # a program that sends questions learns that one was not answered
