"""`adaptive generate PROMPT`: one text, printed as it is generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from ...contract.errors import EXIT_INTERRUPTED
from .output import print_text, report, warn
from .prompt import encode

if TYPE_CHECKING:
    from ..chat.prompt import ChatOptions
    from ..generation.engine import Engine
    from ..generation.request import Token
    from ..generation.sampling.mask import Grammar
    from ..generation.sampling.params import Params
    from .options.tools import ToolCalls


def generate_one(
    engine: Engine,
    prompt: str,
    params: Params,
    *,
    options: ChatOptions,
    grammar: Grammar | None,
    calls: ToolCalls | None,
    is_chat: bool,
    usage: str,
    as_json: bool,
) -> int:
    """Generate the text of a prompt and print it; return the exit code.

    Args:
        engine: The model.
        prompt: The prompt.
        params: Its settings.
        options: What a chat has besides the prompt.
        grammar: What the text must match; None: anything.
        calls: Reads the calls of tools in the text; None: there are no tools.
        is_chat: Whether to put the prompt into the chat template.
        usage: What to report about the compute: "none", "summary" or "tokens".
        as_json: Whether to print one JSON object in place of the text.
    """
    generation = engine.generate(encode(engine, prompt, is_chat=is_chat, options=options), params, grammar=grammar)
    warn(engine, params)
    tokens: list[Token] = []
    recorded = _recorded(generation, tokens)
    texts = calls.texts(recorded) if calls else (token.text for token in recorded)
    interrupted = print_text(texts, strip=is_chat, as_json=as_json)
    if grammar is not None and generation.finish_reason == "length":
        click.echo("note: the text ends at its last token before it matched; raise --max-new-tokens", err=True)
    from ..generation.summary import generation_json, summarise

    request = generation.request
    content = generation_json(request, tokens) | (calls.fields if calls else {}) if as_json else None
    report(engine, request, tokens, summarise(request, tokens), usage=usage, content=content)
    return EXIT_INTERRUPTED if interrupted else 0


def _recorded(tokens: Iterable[Token], into: list[Token]) -> Iterator[Token]:
    """Yield the same tokens, and append each to `into`."""
    for token in tokens:
        into.append(token)
        yield token
