"""Beam search: several texts grow side by side, and the most probable ones go on.

    step:  for each beam, log p(beam) + log p(token | beam) of every token
           the best of all these continuations go on, as many as places are free; with a margin only those near the best
           a continuation that ends (end of text, stop string, most tokens) keeps its place and is computed no further
    score: log p(text) / ((5 + tokens) / 6) ** length_penalty

It ends when all places hold ended texts, or when no growing text can reach the best score of an ended one any more.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...execution.batch import Batch
from ...execution.sequence import Sequence as Slot
from ...execution.step import Step, Work
from ...execution.usage.routes import Routes, at
from ..prefixes import ALONE_GRID
from ..prompt_parts import IDLE_PROMPT_TOKENS
from ..request import Request, Token
from ..sampling.logprobs import most_probable_first, token_logprob
from ..text.tokenizer import Tokenizer
from ..text.visible_text import VisibleText
from .hypothesis import Effort, Found, Hypothesis
from .scores import length_divisor, log_normaliser
from .settings import BeamSettings


@dataclass
class Beam:
    """A text that grows."""

    slot: Slot
    tokens: list[Token]
    logprob: float
    visible: VisibleText
    step: Step
    """The pass over its last token."""


class Continuation(NamedTuple):
    """A token that may follow a beam."""

    beam: Beam
    token: int
    logprob: float
    """That of the text with the token."""


class BeamSearch(Iterator[Token]):
    """Iterates over the tokens of the best text, each as soon as no other text can win; made by `Engine.search`.

    Args:
        request: Prompt and settings.
        tokenizer: The model's tokenizer.
        settings: Settings of the search.
        open_batch: Return memory for the search; called when the first token is requested.
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, settings: BeamSettings, open_batch: Callable[[], Batch]
    ) -> None:
        self.request = request
        """Prompt and settings; when the search has ended, also the best text."""
        self.settings = settings
        self._tokenizer = tokenizer
        self._open_batch = open_batch
        self._batch: Batch | None = None
        self._live: list[Beam] = []  # the most probable first
        self._ended: list[Hypothesis] = []
        self._effort = Effort()
        self._ready: list[Token] = []  # tokens that are certain and were not returned, the next one last
        self._certain = 0
        self._carried = 0.0  # seconds that belong to the next tokens

    @property
    def found(self) -> Found:
        """The texts that have ended, and while it runs also those that grow."""
        growing = [Hypothesis([*one.tokens], one.logprob, self._score(one), None) for one in self._live]
        texts = sorted([*self._ended, *growing], key=lambda one: -one.score)  # stable: the first of equal ones
        return Found(self.request, texts or [Hypothesis([], 0.0, 0.0, None)], self._effort)

    def __iter__(self) -> "BeamSearch":
        return self

    def __next__(self) -> Token:
        while not self._ready:
            if self.request.error is not None:
                raise self.request.error
            if self.request.status == "ended":
                if self.request.finish_reason == "cancelled":
                    raise RuntimeError("another generation of this engine began; an engine runs one at a time")
                raise StopIteration
            self._advance()
        return self._ready.pop()

    def close(self) -> None:
        """End it, and free its memory."""
        if self.request.status != "ended":
            self.request.end("cancelled")
        self._batch = None

    def _advance(self) -> None:
        """Read the prompt or compute the last tokens of all beams, then choose those that go on."""
        begin = time.perf_counter()
        try:
            if self._batch is None:
                self._begin()
            else:
                steps = self._batch.run([Work(one.slot, (one.tokens[-1].id,)) for one in self._live])
                for beam, step in zip(self._live, steps, strict=True):
                    beam.step = step
            before = [at(one.step.routes, -1) for one in self._live]
            self._effort.add(before, self._live[0].step.meter)
            self._effort.steps += 1
            self._grow(begin, before)
        except BaseException as error:
            self._batch = None
            self.request.status = "ended"  # with no reason, if the user interrupts it
            if isinstance(error, Exception):
                self.request.end("error", error)
            raise
        self._effort.seconds += time.perf_counter() - begin
        if self._is_decided():
            self._finish()
        else:
            self._release_certain()

    def _begin(self) -> None:
        request = self.request
        request.status = "running"
        self._batch = batch = self._open_batch()
        slot = batch.join(request.thresholds, request.capacity)
        part = IDLE_PROMPT_TOKENS if batch.graph.mixes_sequences else ALONE_GRID  # the passes of `Loop`: the same bits
        for place in range(0, request.prompt_tokens, part):
            ids = request.ids[place : place + part]
            step = slot.prefill(ids, int(place + part >= request.prompt_tokens))
        visible = VisibleText(self._tokenizer, request.ids, request.params.stop)
        self._live = [Beam(slot, [], 0.0, visible, step)]

    def _grow(self, begin: float, before: Sequence[Routes]) -> None:
        """Replace the beams by their best continuations."""
        assert self._batch is not None
        routes = {id(beam): one for beam, one in zip(self._live, before, strict=True)}
        growing: dict[int, list[Beam]] = {id(beam): [] for beam in self._live}
        order: list[Beam] = []
        chosen = self._continuations()
        stamp = time.perf_counter()
        seconds = stamp - begin + self._carried
        size, alternatives = self._tokenizer.size, self.request.params.logprobs
        left = Counter(id(beam) for beam, _, _ in chosen)
        for beam, token, logprob in chosen:
            tokens, visible = beam.tokens, beam.visible
            left[id(beam)] -= 1
            if left[id(beam)]:  # the last one takes over those of the beam
                tokens, visible = [*tokens], visible.fork()
            text, reason = visible.add(token, end="length" if len(tokens) + 1 == self.request.max_new_tokens else None)
            logprobs = () if alternatives is None else token_logprob(beam.step.logits[-1, :size], token, alternatives)
            tokens.append(Token(token, text, seconds, routes[id(beam)], beam.step.meter, *logprobs))
            if reason is not None:
                score = logprob / length_divisor(len(tokens), self.settings.length_penalty)
                self._ended.append(Hypothesis(tokens, logprob, score, reason))
            else:
                child = Beam(beam.slot, tokens, logprob, visible, beam.step)
                growing[id(beam)].append(child)
                order.append(child)
        dropped = [beam.slot for beam in self._live if not growing[id(beam)]]
        for children in growing.values():
            for child in children[1:]:  # the first keeps the slot
                # A dropped text shares all but its end with the others, which is soon copied.
                follow = self._batch.follow
                child.slot = follow(dropped.pop(), child.slot) if dropped else self._batch.fork(child.slot)
        for slot in dropped:
            self._batch.leave(slot)
        self._live = order
        self._carried = time.perf_counter() - stamp

    def _continuations(self) -> list[Continuation]:
        """Return the best continuations of all beams: as many as places are free, the most probable first.

        Of equally probable ones, those of the beam that ranks before come first, then those of the lower id.
        """
        size, places = self._tokenizer.size, self.settings.beams - len(self._ended)
        every = []
        for beam in self._live:
            logits = beam.step.logits[-1, :size]
            normaliser = log_normaliser(logits)
            every += [
                Continuation(beam, token, beam.logprob + (float(logits[token]) - normaliser))
                for token in most_probable_first(logits, places).tolist()
            ]
        every.sort(key=lambda one: -one.logprob)  # stable
        margin = self.settings.beam_margin
        least = -math.inf if margin is None else every[0].logprob - margin
        return [one for one in every[:places] if one.logprob >= least and one.logprob > -math.inf]

    def _score(self, beam: Beam) -> float:
        return beam.logprob / length_divisor(len(beam.tokens), self.settings.length_penalty)

    def _is_decided(self) -> bool:
        """Whether no beam can reach the best ended text: the longest text divides most, and each token costs."""
        if not self._live:
            return True
        most = length_divisor(self.request.max_new_tokens, self.settings.length_penalty)
        best = max((one.score for one in self._ended), default=-math.inf)
        return best >= self._live[0].logprob / most

    def _release_certain(self) -> None:
        """Release the tokens that all texts share which may still win."""
        texts = [one.tokens for one in self._live]
        if self._ended:
            texts.append(list(max(self._ended, key=lambda one: one.score).tokens))
        first = texts[0]
        certain = self._certain
        while certain < min(map(len, texts)) and all(one[certain] is first[certain] for one in texts):
            certain += 1
        self._ready = [*first[self._certain : certain][::-1], *self._ready]
        self._certain = certain

    def _finish(self) -> None:
        self._live, self._batch = [], None
        best = self.found.best
        self._ready = [*best.tokens[self._certain :][::-1], *self._ready]
        self._certain = len(best.tokens)
        self.request.ids += [token.id for token in best.tokens]
        assert best.finish_reason is not None
        self.request.end(best.finish_reason)
