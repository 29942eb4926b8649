"""Compiles constraints for one tokenizer."""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import UserError
from ..generation.tokenizer import Tokenizer
from .constraint import Constraint
from .trial import Trial
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import llguidance

CACHED = 64
"""Grammars that are kept, those used last."""
SECONDS = 3.0
"""Time that a grammar may take to compile."""
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
SHOWN = 300
"""Characters of an error of llguidance that are shown."""


class Compiler:
    """Compiles constraints for one tokenizer, and keeps those used last. May be used from any thread.

    Compiling blocks for milliseconds, for a hostile grammar up to some seconds.

    Args:
        tokenizer: The tokenizer of the model.

    Raises:
        UserError: llguidance is not installed, or the tokenizer cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise UserError(
                'llguidance is not installed, structured output needs it; type: pip install "adaptive-lm[structured]"'
            ) from error
        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(Vocabulary(tokenizer))  # type: ignore[arg-type]
        self._trial = Trial(SECONDS)
        self._lock = threading.Lock()
        self._cache: OrderedDict[Constraint, CompiledGrammar] = OrderedDict()

    def compile(self, constraint: Constraint) -> "CompiledGrammar":
        """Return the grammar of a constraint.

        Raises:
            UserError: It is invalid, matches nothing, is too complex, or uses what llguidance does not support.
        """
        with self._lock:
            if constraint in self._cache:
                self._cache.move_to_end(constraint)
                return self._cache[constraint]
        grammar = CompiledGrammar(self._compiled(constraint))
        with self._lock:
            self._cache[constraint] = grammar
            if len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        return grammar

    def close(self) -> None:
        """End the process that tries grammars; it ends with this process in any case."""
        self._trial.close()

    def _compiled(self, constraint: Constraint) -> "llguidance.LLMatcher":
        library, grammar = self._library, self._grammar(constraint)
        reason = self._trial.error_of(grammar, LIMITS)
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
