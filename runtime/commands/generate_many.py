"""`adaptive generate --prompts`: many texts at a time, in the order of the file."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ...contract.errors import EXIT_INTERRUPTED, UserError
from .prompt import encode
from .prompt_file import PromptLine

if TYPE_CHECKING:
    from ..generation.engine import Engine
    from ..generation.loop import Event
    from ..generation.many import Completion
    from ..generation.sampling.mask import Grammar
    from ..generation.sampling.params import Params

SHOWN = 70
"""Characters of a prompt that stand above its text."""
SHOW_SECONDS = 0.1
"""Least time between two updates of the progress."""


@dataclass
class Totals:
    """What was generated so far."""

    prompts: int
    begin: float
    ended: int = 0
    failed: int = 0
    tokens: int = 0
    shown: float = 0.0

    def line(self) -> str:
        """Write one line for the user."""
        seconds = time.perf_counter() - self.begin
        failed = f", {self.failed} failed" if self.failed else ""
        speed = f"{self.tokens / seconds:.1f} tokens/s" if seconds else ""
        return f"{self.ended} of {self.prompts} prompts{failed} · {self.tokens} new tokens in {seconds:.1f} s · {speed}"


def generate_many(
    engine: Engine,
    prompts: list[PromptLine],
    base: Params,
    *,
    grammar: Grammar | None,
    is_chat: bool,
    slots: int,
    usage: str,
    as_json: bool,
) -> int:
    """Generate the text of every prompt and print it; return the exit code.

    Args:
        engine: The model.
        prompts: The prompts of the file.
        base: Settings of those that have none of their own.
        grammar: What every text must match; None: anything.
        is_chat: Whether to put each prompt into the chat template.
        slots: Texts to compute at a time.
        usage: What to report about the compute: "none", "summary" or "tokens".
        as_json: Whether to print one JSON object a line.
    """
    from ..terminal.progress import Progress

    ids: list[list[int]] = []
    params: list[Params] = []
    errors: dict[int, UserError] = {}
    for place, prompt in enumerate(prompts):
        try:
            if prompt.error is not None:
                raise prompt.error
            own = prompt.params(base)
            tokens = encode(engine, prompt.text, is_chat=is_chat, where=f"line {prompt.line}: ")
        except UserError as error:
            errors[place] = error
            continue
        ids.append(tokens)
        params.append(own)
    places = [place for place in range(len(prompts)) if place not in errors]
    totals = Totals(len(prompts), time.perf_counter())
    progress = Progress()

    def watch(event: Event) -> None:
        totals.tokens += event.token is not None
        totals.ended += event.last
        now = time.perf_counter()
        if now - totals.shown >= SHOW_SECONDS:
            totals.shown = now
            progress.show(totals.line())

    def show(place: int, completion: Completion | None, error: Exception | None) -> None:
        if error is not None:
            totals.failed += 1
            if completion is None or completion.request is None:
                totals.ended += 1
        print_one(engine, prompts[place], completion, error, usage=usage, as_json=as_json, strip=is_chat)

    completions = engine.generate_many(ids, params, grammar=grammar, slots=slots, watch=watch)
    place = 0
    interrupted = False
    try:
        while place < len(prompts):
            if place in errors:
                show(place, None, errors[place])
            else:
                with progress:  # not while something is printed: the live line would mix with it
                    completion = next(completions)
                show(place, completion, completion.error)
            place += 1
    except KeyboardInterrupt:
        interrupted = True
        for completion in completions.rest():
            show(places[completion.index], completion, completion.error)
    if not as_json and usage != "none":
        click.echo(("interrupted: " if interrupted else "") + totals.line(), err=True)
    elif interrupted:
        click.echo(f"interrupted: {totals.line()}", err=True)
    return EXIT_INTERRUPTED if interrupted else int(totals.failed > 0)


def print_one(
    engine: Engine,
    prompt: PromptLine,
    completion: Completion | None,
    error: Exception | None,
    *,
    usage: str,
    as_json: bool,
    strip: bool,
    content: dict[str, Any] | None = None,
) -> None:
    """Print the text of one prompt, or on stderr why there is none.

    Args:
        engine: The model.
        prompt: The prompt.
        completion: Its text; None if it was refused.
        error: Why there is no text.
        usage: What to report about the compute: "none", "summary" or "tokens".
        as_json: Whether to print one JSON object a line.
        strip: Leave out the white space before an answer.
        content: The JSON object; None takes that of the completion.
    """
    from ..generation.summary import generation_json

    if error is not None:
        click.echo(f"Error: line {prompt.line}: {error}", err=True)
        if as_json:
            click.echo(json.dumps({"line": prompt.line, "error": str(error)}))
    elif completion is not None and completion.request is not None:
        if as_json:
            click.echo(json.dumps(content or generation_json(completion.request, completion.tokens)))
        else:
            above = prompt.text if len(prompt.text) <= SHOWN else prompt.text[: SHOWN - 3] + "..."
            text = completion.text.lstrip() if strip else completion.text
            click.echo(f"[{prompt.line}] {above}\n{text.removesuffix(chr(10))}\n")
            if usage == "tokens":
                sys.stdout.flush()
                from ..generation.render import show_tokens

                show_tokens(completion.tokens, engine.manifest)
    sys.stdout.flush()
