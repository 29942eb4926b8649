"""The commands `adaptive generate` and `adaptive bench`, and the options that commands share.

Only click and the standard library up here: help is quick.
"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ...contract.errors import EXIT_INTERRUPTED, UserError, WrongUsageError
from .options import dial_options, model_options, utf8_stdout

if TYPE_CHECKING:
    from ..dial.dial import Dial
    from ..generation.engine import Engine, Generation, Params, Token


@click.command(epilog='\b\nExample: adaptive generate "How do mountains form?" --temperature 0 --usage tokens')
@click.argument("prompt")
@click.option("--max-new-tokens", type=int, help="At most this many; by default 128, or what the context has room for.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 takes the most probable token.")
@click.option("--top-k", type=int, help="Choose among the K most probable tokens.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Choose among tokens that hold this mass.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Drop tokens this much rarer than the first.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1 avoids repetition.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("--seed", type=int, help="Of the random numbers; by default a new one each time.")
@click.option(
    "--chat/--raw", "chat", default=None, help="Through the chat template, or as it is; by default as trained."
)
@click.option("--usage", type=click.Choice(["none", "summary", "tokens"]), default="summary", show_default=True,
              help="What to tell of the compute, on stderr.")  # fmt: skip
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, with the usage of each token, at the end."
)
@dial_options
@model_options
@click.pass_context
def generate(
    ctx: click.Context, /, prompt: str, model: str | None, chat: bool | None, usage: str, as_json: bool, device: str,
    threads: int | None, verify: bool, **params: Any,
) -> None:  # fmt: skip
    """Continue PROMPT with an exported model, or answer it; `-` reads the prompt from stdin.

    The text goes to stdout as it comes, what it cost to stderr. `tokens` shows the text coloured by compute and a table
    with the experts, layers, share of dense FLOPs and time of each token.
    """
    text = read_prompt(prompt)
    from ..generation.engine import Params

    try:
        wanted = Params(**params)  # before the model is opened: a wrong number is answered at once
    except WrongUsageError as error:
        raise WrongUsageError(with_option_name(str(error), params)) from None
    from ..format.locate import find_model
    from ..generation.engine import load

    engine = load(find_model(model), device=device, threads=threads, verify=verify)
    talk = engine.manifest.chat_template is not None if chat is None else chat
    generation = begin(engine, text, talk, wanted)
    remark(engine, wanted)
    tokens: list[Token] = []
    interrupted = False
    try:
        if as_json:
            tokens.extend(generation)
        else:
            with utf8_stdout():
                stream(collected(generation, tokens), strip=talk)
    except KeyboardInterrupt:
        interrupted = True
        if not as_json:
            click.echo()
    report(engine, generation, tokens, usage, as_json)
    if interrupted:
        ctx.exit(EXIT_INTERRUPTED)


def with_option_name(message: str, options: Iterable[str]) -> str:
    """Name the option where a message names its parameter: "found top_k 0, ..." becomes "found --top-k 0, ..."."""
    first, _, rest = message.removeprefix("found ").partition(" ")
    return f"found --{first.replace('_', '-')} {rest}" if first in options else message


def read_prompt(prompt: str) -> str:
    """The prompt itself, or stdin for `-`, without the line end that the shell adds. Raises UserError if not UTF-8."""
    if prompt != "-":
        return prompt
    content = sys.stdin.buffer.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"stdin is not valid UTF-8: found byte 0x{content[error.start]:02x} at {error.start}; "
            "convert it with: iconv -t UTF-8"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


def begin(engine: Engine, text: str, talk: bool, params: Params) -> Generation:
    """The generation, and a word on stderr about characters that the tokenizer does not have."""
    if not text:
        raise UserError("the prompt is empty, expected at least one character; type a text to continue")
    ids = engine.chat([{"role": "user", "content": text}]) if talk else engine.tokenizer.encode(text)
    unknown = engine.tokenizer.encode(text).count(-1 if (u := engine.tokenizer.unknown_id) is None else u)
    if unknown:
        click.echo(f"note: {unknown} tokens of the prompt are unknown to this model's tokenizer", err=True)
    return engine.generate(ids, params)


def remark(engine: Engine, dial: Dial) -> None:
    """What a person should know of the asked point of a calibrated model, on stderr."""
    if not dial.calibrated:
        return
    from ..dial.dial import remarks
    from ..measuring.machine import describe

    for line in remarks(engine.manifest, dial, describe(engine.session)):
        click.echo(f"note: {line}", err=True)


def collected(tokens: Iterable[Token], into: list[Token]) -> Iterator[Token]:
    """The same tokens, kept in `into` as they pass."""
    for token in tokens:
        into.append(token)
        yield token


def stream(tokens: Iterable[Token], *, strip: bool) -> None:
    """Text to stdout as it comes, ended by a line end; without the white space before an answer if `strip`."""
    begun, ended = not strip, False
    for token in tokens:
        text = token.text if begun else token.text.lstrip()
        if text:
            begun, ended = True, text.endswith("\n")
            click.echo(text, nl=False)
            sys.stdout.flush()
    if not ended:
        click.echo()


def report(engine: Engine, generation: Generation, tokens: list[Token], usage: str, as_json: bool) -> None:
    """The JSON object on stdout, and on stderr what `usage` asks for."""
    from ..generation.summary import summarise, token_json

    summary = summarise(generation, tokens)
    if as_json:
        content = {
            "text": "".join(token.text for token in tokens),
            "tokens": [token_json(token) for token in tokens],
            "usage": summary.as_json(),
            "thresholds": generation.thresholds.as_lists(),
        }
        click.echo(json_module.dumps(content))
        return
    if usage == "none":
        return
    from ..generation.render import show_summary, show_tokens

    if usage == "tokens":
        show_tokens(tokens, engine.manifest)
    show_summary(summary, engine.manifest)
