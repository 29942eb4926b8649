"""`adaptive generate --beams` and `--best-of`: the most probable of several texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ...contract.errors import EXIT_INTERRUPTED, UserError, WrongUsageError
from .generate_many import print_one
from .output import print_text, report
from .prompt import encode
from .prompt_file import PromptLine

if TYPE_CHECKING:
    from ..generation.engine import Engine
    from ..generation.request import Token
    from ..generation.sampling.mask import Grammar
    from ..generation.sampling.params import Params
    from ..generation.search.beam_search import BeamSearch
    from ..generation.search.hypothesis import Found
    from ..generation.search.settings import BeamSettings


@dataclass
class SearchOptions:
    """The search that the command line requests."""

    beams: BeamSettings | None
    best_of: int | None
    grammar: Grammar | None = None
    """What every drawn text must match."""

    def check(self, params: Params) -> None:
        """Refuse settings of a text that make no sense with the search.

        Raises:
            WrongUsageError: One does not.
        """
        from ..generation.search.best_of import check_best_of
        from ..generation.search.settings import check_beam_params

        if self.beams is not None:
            check_beam_params(params)
        if self.best_of is not None:
            check_best_of(params, self.best_of)

    def begin(self, engine: Engine, ids: list[int], params: Params) -> Search:
        """Return a search after the prompt `ids`; nothing is computed before its first token is requested."""
        return Search(self, engine, ids, params)


class Search:
    """Iterates over the tokens of the best text; those of a best-of come when all texts are complete."""

    def __init__(self, options: SearchOptions, engine: Engine, ids: list[int], params: Params) -> None:
        self._beams: BeamSearch | None = None
        self._found: Found | None = None
        self._tokens: Iterator[Token] = self._of_best(engine, ids, params, options)
        if options.beams is not None:
            self._tokens = self._beams = engine.search(ids, params, **vars(options.beams))

    @property
    def found(self) -> Found | None:
        """The texts so far; None before those of a best-of are complete."""
        return self._found if self._beams is None else self._beams.found

    def __iter__(self) -> Iterator[Token]:
        return self._tokens

    def _of_best(self, engine: Engine, ids: list[int], params: Params, options: SearchOptions) -> Iterator[Token]:
        self._found = engine.best_of(ids, params, n=options.best_of or 1, grammar=options.grammar)
        yield from self._found.best.tokens


def search_options(
    beams: int | None, beam_margin: float | None, length_penalty: float | None, best_of: int | None, batch: int | None
) -> SearchOptions | None:
    """Return the search that is requested, None if there is none.

    Raises:
        WrongUsageError: Options exclude each other, or a number is wrong.
    """
    if beams is not None and best_of is not None:
        raise WrongUsageError("found both --beams and --best-of, expected one of them; leave out the other")
    for name, value in (("--beam-margin", beam_margin), ("--length-penalty", length_penalty)):
        if value is not None and beams is None:
            raise WrongUsageError(f"found {name} without --beams, expected both; add --beams 4")
    if beams is None and best_of is None:
        return None
    if batch is not None:
        name = "--best-of" if beams is None else "--beams"
        raise WrongUsageError(f"found --batch with {name}, which takes one prompt after another; leave out --batch")
    from ..generation.search.settings import BeamSettings

    if beams is None:
        return SearchOptions(None, best_of)
    penalty = {} if length_penalty is None else {"length_penalty": length_penalty}
    return SearchOptions(BeamSettings(beams=beams, beam_margin=beam_margin, **penalty), None)


def search_many(
    engine: Engine, prompts: list[PromptLine], base: Params, options: SearchOptions, *, is_chat: bool, usage: str,
    as_json: bool,
) -> int:  # fmt: skip
    """Search for the text of every prompt, one after another, and print each; return the exit code."""
    from ..generation.many import Completion
    from ..generation.search.report import found_json, found_line

    failed = False
    for place, prompt in enumerate(prompts):
        completion, error, content, line = None, None, None, None
        try:
            if prompt.error is not None:
                raise prompt.error
            params = prompt.params(base)
            options.check(params)
            ids = encode(engine, prompt.text, is_chat=is_chat, where=f"line {prompt.line}: ")
            search = options.begin(engine, ids, params)
            tokens, found = list(search), search.found
            assert found is not None
            completion = Completion(place, found.request, tokens=tokens)
            content, line = (found_json(found), None) if as_json else (None, found_line(found))
        except UserError as caught:
            error, failed = caught, True
        except KeyboardInterrupt:
            click.echo(f"interrupted: {place} of {len(prompts)} prompts", err=True)
            return EXIT_INTERRUPTED
        print_one(engine, prompt, completion, error, usage=usage, as_json=as_json, strip=is_chat, content=content)
        if line is not None and usage != "none":
            click.echo(line, err=True)
    return int(failed)


def search_one(
    engine: Engine, prompt: str, params: Params, options: SearchOptions, *, is_chat: bool, usage: str, as_json: bool
) -> int:
    """Search for the text of a prompt and print it; return the exit code."""
    search = options.begin(engine, encode(engine, prompt, is_chat=is_chat), params)
    interrupted = print_text((token.text for token in search), strip=is_chat, as_json=as_json)
    found = search.found
    if found is not None:
        from ..generation.search.report import found_json, found_line, summarise_found

        content = found_json(found) if as_json else None
        report(engine, found.request, found.best.tokens, summarise_found(found), usage=usage, content=content)
        if content is None and usage != "none":
            click.echo(found_line(found), err=True)
    return EXIT_INTERRUPTED if interrupted else 0
