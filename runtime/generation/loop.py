"""The generation loop: requests join a batch, are computed together pass by pass, and leave."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ...contract.errors import UserError
from ..execution.batch import Batch
from ..execution.memory.kv_cache import CHUNK
from ..execution.sequence import Sequence as Tokens
from ..execution.step import Step, Work
from ..speculation.drafter import Drafter
from ..speculation.pass_costs import PassCosts
from .prefixes import ALONE_GRID
from .request import Request, Token
from .slots import Slots

LEAST_COPIED = 64
"""Least tokens of a prompt from one copy of the states to the next: a copy needs a pass of its own (decision 0050)."""
PROMPT_TOKENS = 128
"""Tokens of prompts in one pass beside sequences that decode, which wait for no more than this (decision 0028)."""
IDLE_PROMPT_TOKENS = 512
"""Tokens of prompts in one pass where no sequence decodes."""
SCORED_TOKENS = 64
"""Tokens of a prompt in one pass where each needs its log-probability, which bounds the memory of the logits."""


class Event(NamedTuple):
    """What a pass did for a request: a new token, or an end without one."""

    request: Request
    token: Token | None
    """None where the request failed, `request.error` says why, or where its prompt was embedded."""
    last: bool = True
    """Whether the request ended with it. A pass with a draft may give several tokens."""


Part = tuple[Request, Work, list[int]]
"""Tokens of a pass for one request; the list is the draft at the end of them."""


class Loop:
    """Generates the texts of many requests, as many at a time as a batch has slots.

    `submit` and `cancel` may be called from any thread, `step` from one at a time. A request that fails ends alone. The
    result of a request does not depend on the others.

    Args:
        batch: Where the requests are computed; nothing else may use it.
        costs: Where the times of passes are recorded for drafters; None records them nowhere.
        most_waiting: The most requests that wait for a slot; None sets no limit.
    """

    def __init__(self, batch: Batch, costs: PassCosts | None = None, most_waiting: int | None = None) -> None:
        self.batch = batch
        self._costs = costs
        self._most_waiting = most_waiting
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._slots = Slots(batch, 1 if batch.graph.mixes_sequences else ALONE_GRID)
        self._cancelled = False
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Slots in which no request runs."""
        return self.batch.slots - len(self._running)

    @property
    def requests(self) -> list[Request]:
        """The requests that run or wait."""
        return [*self._running, *self._waiting]

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits, so that `step` has something to do."""
        return bool(self._running or self._waiting)

    def submit(self, request: Request) -> None:
        """Let a request wait for a slot.

        Raises:
            UserError: It needs more room than a slot has, or too many wait already.
            ValueError: It was submitted before.
        """
        if request.status != "waiting" or request in self._waiting:
            raise ValueError("found a request that was submitted before, expected a new one")
        if request.capacity > self.batch.capacity:
            raise UserError(
                f"found {request.prompt_tokens} prompt tokens and {request.max_new_tokens} new ones, a sequence of "
                f"this batch holds {self.batch.capacity}; shorten the prompt or lower --max-new-tokens"
            )
        if self._most_waiting is not None and len(self._waiting) >= self._most_waiting:
            raise UserError(f"found {len(self._waiting)} requests that wait, expected fewer; try again later")
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request with the reason "cancelled": at once, or before the next pass if one is running."""
        request.cancelled = self._cancelled = True
        if self._lock.acquire(blocking=False):
            try:
                if self._cancelled:  # else a pass that has just ended did it
                    self._remove_cancelled()
            finally:
                self._lock.release()

    def drop_cancelled(self) -> None:
        """End the requests that were cancelled during the last pass, so that `free` counts their slots."""
        with self._lock:
            if self._cancelled:
                self._remove_cancelled()

    def step(self) -> list[Event]:
        """Compute one pass, and return what it gave; nothing where no request runs or waits."""
        with self._lock:
            begin = time.perf_counter()
            if self._cancelled:
                self._remove_cancelled()
            events = self._admit() if self._waiting else []
            plan = self._plan(events)
            owed = [work.sequence.owed for _, work, _ in plan]
            before = time.perf_counter()
            results = self._compute([work for _, work, _ in plan])
            pass_seconds = time.perf_counter() - before
            new = sum(len(work.ids) for _, work, _ in plan)
            rows = new + sum(owed)
            if self._costs is not None and new == sum(1 + len(draft) for _, _, draft in plan):  # else a prompt is read
                self._costs.add(rows, pass_seconds)
            served = []
            for (request, _, draft), again, result in zip(plan, owed, results, strict=True):
                try:
                    if isinstance(result, Exception):
                        raise result
                    if request.reads_all and not request.new_tokens:
                        request.read(result)
                    if request.sequence is not None and request.sequence.position in request.borders:
                        request.sequence.checkpoint()
                    if request.embeds:
                        if not request.reading:
                            self._release(request, "embedded")
                            events.append(Event(request, None))
                    elif not request.reading:  # else the prompt goes on
                        drafter = request.drafter if request.new_tokens else None
                        right = self._take(request, result, draft, begin, events)
                        served.append(request)
                        if drafter is not None:
                            drafter.verified(len(draft), right, rows, pass_seconds + request.copying, again)
                        request.copying = 0.0
                except Exception as error:  # of one request: its sampler, its logits, its text
                    events.append(self._fail(request, error))
            if len(served) < len(self._running):
                spent = time.perf_counter() - begin
                for request in self._running:
                    request.elapsed += 0 if request in served else spent
            return events

    def _remove_cancelled(self) -> None:
        self._cancelled = False
        for request in [one for one in self.requests if one.cancelled]:
            if request.status == "waiting":
                self._waiting.remove(request)
                request.end("cancelled")
            else:
                self._release(request, "cancelled")

    def _admit(self) -> list[Event]:
        """Give free slots to the requests that have waited longest."""
        events = []
        while self._waiting and self.free:
            request = self._waiting.popleft()
            if request.cancelled:  # before it was submitted
                request.end("cancelled")
                continue
            self._running.append(request)
            try:
                sequence, shared = self._slots.take(request)
                sequence.thresholds = request.thresholds  # a prefix may be that of a text whose dial has moved since
                request.begin(sequence)
                request.borders = self._borders(request, sequence, shared)
            except Exception as error:
                events.append(self._fail(request, error))
        return events

    def _borders(self, request: Request, sequence: Tokens, shared: int) -> tuple[int, ...]:
        """Choose where the prompt is read in two passes, with a copy of the states in between.

        That is where this prompt and one before it go their ways, since a third may begin like both (2411.19379), and
        before the last token, for another text after the same prompt. Where sequences run alone, a prefix ends at the
        grid, as passes do anyway.
        """
        if not sequence.recurrent or request.reads_all or not self.batch.graph.mixes_sequences:
            return ()
        borders, before = [], len(sequence.ids)
        for border in (shared, request.prompt_tokens - 1):
            if border - before >= LEAST_COPIED:
                borders.append(border)
                before = border
        return tuple(borders)

    def _plan(self, events: list[Event]) -> list[Part]:
        """Choose the tokens of the next pass: one of each request that decodes, its draft, and parts of prompts."""
        decoding = [one for one in self._running if not one.reading]
        plan: list[Part] = []
        if len(decoding) < len(self._running):
            plan = self._prompts([one for one in self._running if one.reading], bool(decoding))
        rows = sum([len(work.ids) for _, work, _ in plan]) + len(decoding)
        rows += sum([one.sequence.owed for one in decoding if one.sequence is not None])
        for request in decoding:
            sequence, ids = request.sequence, request.ids
            assert sequence is not None
            draft: list[int] = []
            if request.drafter is not None and not sequence.owed:  # else they would soon be many
                try:
                    draft = self._draft(request.drafter, request, rows - 1)
                except Exception as error:
                    events.append(self._fail(request, error))
                    continue
                rows += len(draft)
                if draft and sequence.recurrent:
                    begin = time.perf_counter()
                    sequence.mark()
                    request.copying += time.perf_counter() - begin
            plan.append((request, Work(sequence, [ids[-1], *draft], 1 + len(draft)), draft))
        return plan

    def _draft(self, drafter: Drafter, request: Request, others: int) -> list[int]:
        most = min(request.max_new_tokens - request.new_tokens - 1, CHUNK - 1)
        return list(drafter.draft(request.ids, most, others))[:most] if most > 0 else []

    def _prompts(self, reading: list[Request], others_wait: bool) -> list[Part]:
        """Choose the parts of prompts for the next pass, of equal size where several are read."""
        if not self.batch.graph.mixes_sequences:
            first = reading[0]  # alone, and the others first the next time
            self._running.remove(first)
            self._running.append(first)
            assert first.sequence is not None
            return [self._part(first, ALONE_GRID - len(first.sequence.ids) % ALONE_GRID)]
        left = PROMPT_TOKENS if others_wait else IDLE_PROMPT_TOKENS
        plan = []
        for place, request in enumerate(sorted(reading, key=lambda one: one.reading)):
            most = request.reading if request.prompt_logprobs is None else min(request.reading, SCORED_TOKENS)
            count = min(max(left // (len(reading) - place), 1), most)  # what a short one leaves is shared
            left -= count
            plan.append(self._part(request, count))
        return plan

    def _part(self, request: Request, most: int) -> Part:
        assert request.sequence is not None
        begin = len(request.sequence.ids)
        end = min([begin + most, request.prompt_tokens, *(one for one in request.borders if one > begin)])
        logits = int(end == request.prompt_tokens and not request.embeds)
        if request.prompt_logprobs is not None:
            logits = end - begin
        return request, Work(request.sequence, request.ids[begin:end], logits), []

    def _compute(self, work: list[Work]) -> Sequence[Step | Exception]:
        """Compute `work`; if that fails, compute each item alone, so that only the one at fault fails."""
        if not work:
            return []
        try:
            return self.batch.run(work)
        except Exception as error:
            if len(work) == 1:
                return [error]
        results: list[Step | Exception] = []
        for one in work:
            try:
                results += self.batch.run([one])
            except Exception as error:
                results.append(error)
        return results

    def _take(self, request: Request, step: Step, draft: list[int], begin: float, events: list[Event]) -> int:
        """Let a request take its tokens from its part of a pass, and end it where the text ends.

        Returns:
            How many tokens of `draft` were right.
        """
        right, taken = 0, request.take(step, draft)
        if draft:
            right = sum(one.token == guess for one, guess in zip(taken, draft, strict=False))
            sequence = request.sequence
            assert sequence is not None
            begin_of_rewind = time.perf_counter()
            sequence.rewind(len(sequence.ids) - len(draft) + right)
            if sequence.recurrent:
                request.copying += time.perf_counter() - begin_of_rewind
            request.drafted += len(draft)
            request.accepted += right
        seconds = (request.elapsed + time.perf_counter() - begin) / len(taken)
        request.elapsed = 0.0
        if request.finish_reason is not None:
            self._release(request, request.finish_reason)
        for place, (token, text, routes, logprob) in enumerate(taken, 1):
            last = place == len(taken) and request.status == "ended"
            events.append(Event(request, Token(token, text, seconds, routes, step.meter, *(logprob or ())), last))
        return right

    def _fail(self, request: Request, error: Exception) -> Event:
        sequence = request.sequence
        self._running.remove(request)
        if sequence is not None:
            self._slots.clear(sequence)
        request.end("error", error)
        return Event(request, None)

    def _release(self, request: Request, reason: str) -> None:
        """End a request that runs. Its cells stay until the slot is needed, for a prompt that begins like its text."""
        sequence = request.sequence
        assert sequence is not None
        request.end(reason)  # first: where a drafter fails in it, the request still runs and fails alone
        self._running.remove(request)
        self._slots.keep(sequence)
