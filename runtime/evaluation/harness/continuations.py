"""The log-probabilities of continuations of contexts: many of both, and what they begin with is read once.

n tokens that are scored in one pass, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import NamedTuple

from ....contract.errors import UserError
from ...dial import Thresholds
from ...execution.sequence import Sequence
from ...generation.engine import Engine
from ...generation.prefixes import shared
from ...measuring.quality.perplexity import PASS_TOKENS, Logits, log_probabilities, scored_rows

Ids = tuple[int, ...]


class Continuation(NamedTuple):
    """What a context may be followed by."""

    context: Ids
    """At least one token."""
    targets: Ids
    """At least one token."""


@dataclass
class Likelihood:
    """How probable a continuation is."""

    logprob: float = 0.0
    """Sum over its tokens."""
    greedy: bool = True
    """Whether each of its tokens is the most probable one."""


class ContinuationScorer:
    """Scores continuations with a model at one point of its dial.

    Continuations that need the logits of the same tokens are scored in one reading. Readings are ordered by their
    tokens, so that each goes back to where it differs from the one before: the examples of a few-shot prompt are read
    once, and a question once for all of its answers.
    """

    def __init__(self, engine: Engine, point: Thresholds) -> None:
        self._engine, self._point = engine, point
        self._size = engine.manifest.model.tokenizer_size
        self.context_length = engine.manifest.model.context_length
        self.truncated = 0
        """Contexts that lost their beginning because they did not fit."""
        self.tokens_read = 0
        """Tokens that were computed: those that readings share count once."""

    def score(
        self, wanted: Listed[Continuation], watch: Callable[[int], None] = lambda count: None
    ) -> list[Likelihood]:
        """Return the likelihoods in the order of `wanted`.

        A context that does not fit loses its beginning, as the harness does it.

        Args:
            wanted: The continuations.
            watch: Is called with the number of continuations that a reading has scored.

        Raises:
            UserError: A continuation has no tokens, or more than the model's context.
        """
        results = [Likelihood() for _ in wanted]
        readings: dict[Ids, list[tuple[Likelihood, Ids]]] = {}
        for one, result in zip(wanted, results, strict=True):
            readings.setdefault(self._reading(one), []).append((result, one.targets))
        sequence = self._engine.session.sequence(self._point, max(map(len, readings), default=1))
        rows = scored_rows(self._engine)
        for ids in sorted(readings):
            members = readings[ids]
            count = max(len(targets) for _, targets in members)
            common = shared(list(ids), sequence.ids, len(ids) - count)
            sequence.rewind(sequence.nearest(common))
            for place, logits in self._read(sequence, ids, count, rows):
                for result, targets in members:
                    self._add(result, targets, logits, place - (count - len(targets)))
            watch(len(members))
        return results

    def fitted(self, ids: Ids, most: int) -> Ids:
        """Return the last tokens of a context, after the model's BOS token if it begins with it."""
        if len(ids) <= most:
            return ids
        self.truncated += 1
        begin = ids[:1] if ids[0] == self._engine.tokenizer.bos_id and most > 1 else ()
        return begin + ids[len(ids) - most + len(begin) :]

    def _reading(self, one: Continuation) -> Ids:
        """Return the tokens to read for a continuation: all but its last."""
        if not 0 < len(one.targets) <= self.context_length:
            raise UserError(
                f"found a continuation of {len(one.targets)} tokens, this model scores 1 to {self.context_length}; "
                "shorten the texts of the task"
            )
        rest = one.targets[:-1]
        return self.fitted(one.context, self.context_length - len(rest)) + rest

    def _read(self, sequence: Sequence, ids: Ids, count: int, rows: int) -> Iterator[tuple[int, Logits]]:
        """Read what `sequence` does not hold of `ids`; yield the logits of the last `count`, and the first's place."""
        begin, scored = len(sequence.ids), len(ids) - count
        self.tokens_read += len(ids) - begin
        for place in range(begin, scored, PASS_TOKENS):
            sequence.prefill(ids[place : min(place + PASS_TOKENS, scored)], 0)
        sequence.checkpoint()  # the next reading may go back to here
        for place in range(scored, len(ids), rows):
            part = ids[place : place + rows]
            yield place - scored, sequence.prefill(part, len(part)).logits[:, : self._size]

    @staticmethod
    def _add(result: Likelihood, targets: Ids, logits: Logits, place: int) -> None:
        """Add the tokens of a continuation whose logits these are; the first row is that of target `place`."""
        rows = logits[max(-place, 0) :]
        own = targets[max(place, 0) : max(place, 0) + len(rows)]
        if own:
            result.logprob += float(log_probabilities(rows[: len(own)], own).sum())
            result.greedy = result.greedy and bool((rows[: len(own)].argmax(axis=1) == own).all())
