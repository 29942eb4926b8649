"""Compiles constraints for one tokenizer."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import UserError
from ..generation.text.tokenizer import Tokenizer
from .constraint import Constraint
from .trial import Trial
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import llguidance

Kept = TypeVar("Kept")
CACHED = 64
"""Grammars that are kept, those used last."""
SECONDS = 3.0
"""Time that a grammar may take to compile."""
MOST_COMPILING = 4
"""Rules that may be compiled or wait for it at a time; few, because each holds a thread."""
REFUSED_SECONDS = 60.0
"""Time for which a rule that could not be used is refused at once."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 200_000,  # some 15 ms
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,  # 1 to 2 KB each
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""Limits of llguidance on the work and memory of a grammar, and of each mask."""
WHITESPACE = r"( |\n[ \t]{0,20})"
"""Between the parts of JSON, once; unlimited, a model can write it for ever."""
TOKEN_ID = "<["  # noqa: S105 - no password
"""Begins a token id in a grammar."""
SHOWN = 300
"""Characters of an error of llguidance that are shown."""


class BusyError(UserError):
    """Too many rules wait to be compiled; a later try may succeed."""


class Compiler:
    """Compiles constraints for one tokenizer, and keeps those used last. May be used from any thread.

    Compiling blocks for milliseconds, for a hostile grammar up to some seconds.

    Args:
        tokenizer: The tokenizer of the model.
        clock: Seconds, for the time for which a rule is refused.

    Raises:
        UserError: llguidance is not installed, or the tokenizer cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise UserError(
                'llguidance is not installed, structured output needs it; type: pip install "adaptive-lm[structured]"'
            ) from error
        self._library = llguidance
        vocabulary = Vocabulary(tokenizer)
        self._tokenizer = llguidance.LLTokenizer(vocabulary, eos_token=vocabulary.ends)  # type: ignore[arg-type]
        self._ids = tokenizer.size
        self._trial = Trial(SECONDS)
        self._lock = threading.Lock()
        self._clock, self._room = clock, threading.Semaphore(MOST_COMPILING)
        self._cache: OrderedDict[Constraint, CompiledGrammar] = OrderedDict()
        self._refused: OrderedDict[Constraint, tuple[float, str]] = OrderedDict()  # until when, and why

    def compile(self, constraint: Constraint) -> "CompiledGrammar":
        """Return the grammar of a constraint.

        Raises:
            BusyError: Too many rules wait already.
            UserError: It is invalid, matches nothing, is too complex, or uses what llguidance does not support.
        """
        with self._lock:
            if constraint in self._cache:
                self._cache.move_to_end(constraint)
                return self._cache[constraint]
            until, reason = self._refused.get(constraint, (0.0, ""))
            if reason and self._clock() < until:
                raise UserError(reason)
        if not self._room.acquire(blocking=False):
            raise BusyError(f"found {MOST_COMPILING} rules that wait to be compiled, expected fewer; try again later")
        try:
            grammar = CompiledGrammar(self._compiled(constraint))
        except UserError as error:
            with self._lock:
                keep(self._refused, constraint, (self._clock() + REFUSED_SECONDS, str(error)))
            raise
        finally:
            self._room.release()
        with self._lock:
            keep(self._cache, constraint, grammar)
        return grammar

    def close(self) -> None:
        """End the process that tries grammars; it ends with this process in any case."""
        self._trial.close()

    def _compiled(self, constraint: Constraint) -> "llguidance.LLMatcher":
        library, grammar = self._library, self._grammar(constraint)
        ids = self._ids if constraint.kind == "grammar" and TOKEN_ID in constraint.source else 0
        reason = self._trial.error_of(grammar, LIMITS, ids)
        if reason:
            raise unusable(constraint, reason)
        limits = library.LLParserLimits(**LIMITS)
        matcher: llguidance.LLMatcher = library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise unusable(constraint, matcher.get_error())
        return matcher

    def _grammar(self, constraint: Constraint) -> str:
        """Return the constraint in the form that llguidance compiles."""
        library, source = self._library.LLMatcher, constraint.source
        if constraint.kind == "regex":
            return library.grammar_from_regex(source)
        if constraint.kind == "grammar":
            return library.grammar_from_lark(source)
        if source == "false":
            raise unusable(constraint, "it matches no text")
        if source == "true":
            source = "{}"  # llguidance puts our options into the schema
        try:
            return library.grammar_from_json_schema(source, overrides={"whitespace_pattern": WHITESPACE})
        except ValueError as error:
            raise unusable(constraint, str(error)) from error


def keep(cache: OrderedDict[Constraint, Kept], constraint: Constraint, value: Kept) -> None:
    """Put a value into a cache, in place of the one that was used longest ago where it is full."""
    cache[constraint] = value
    cache.move_to_end(constraint)
    if len(cache) > CACHED:
        cache.popitem(last=False)


class CompiledGrammar:
    """What texts must match, compiled: a `Grammar` of the runtime."""

    def __init__(self, matcher: "llguidance.LLMatcher") -> None:
        self._matcher = matcher
        self._lock = threading.Lock()

    def mask(self) -> "MatcherMask":
        """Return the mask of a new text."""
        with self._lock:
            return MatcherMask(self._matcher.deep_copy())


class MatcherMask:
    """The tokens that one text may continue with: a `TokenMask` of the runtime."""

    def __init__(self, matcher: "llguidance.LLMatcher") -> None:
        self._matcher = matcher
        self._tokens = 0
        self.ended = False
        """Whether the text is complete and nothing can follow it."""

    @property
    def complete(self) -> bool:
        """Whether the text so far matches, whatever may follow."""
        return bool(self._matcher.is_accepting())

    def allowed(self) -> NDArray[np.uint32]:
        """Return a bit for each token, the lowest of the first word first: 1 where it may follow.

        Raises:
            UserError: The grammar is too complex at this place, or no token of the model can follow.
        """
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        self._check()
        return words

    def accept(self, token: int) -> None:
        """Add the token that was chosen, one of those allowed."""
        self._matcher.consume_token(token)
        self._tokens += 1
        self._check()
        self.ended = bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError(
                f"found a grammar that cannot be followed after {self._tokens} tokens of the text: "
                f"{first_line(self._matcher.get_error())}; simplify it"
            )


def unusable(constraint: Constraint, reason: str) -> UserError:
    """Return the error of a constraint that cannot be compiled."""
    if "NoExtension" in reason:
        reason = "it matches no text"
    return UserError(f"found a {constraint.name} that cannot be used: {first_line(reason)}; correct or simplify it")


def first_line(message: Any) -> str:
    """Return what is readable of an error of llguidance: one line, without the numbers of lines of its own grammar."""
    lines = [line.strip() for line in str(message).replace("<non-verbose/>", "").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")] or lines or ["unknown error"]
    text = errors[0].removeprefix("error:").strip()
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
