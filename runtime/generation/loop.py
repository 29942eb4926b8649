"""The generation loop: requests join a batch, are computed together pass by pass, and leave."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ...contract.errors import UserError
from ..execution.batch import Batch
from ..execution.memory.kv_cache import CHUNK
from ..execution.step import Step, Work
from ..speculation.drafter import Drafter
from ..speculation.pass_costs import PassCosts
from .prefixes import ALONE_GRID
from .prompt_parts import Part, PromptParts
from .request import Request, Token
from .slots import Slots


class Event(NamedTuple):
    """What a pass did for a request: a new token, or an end without one."""

    request: Request
    token: Token | None
    """None where the request failed, `request.error` says why, or where its prompt was embedded."""
    last: bool = True
    """Whether the request ended with it. A pass with a draft may give several tokens."""


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
        grid = None if batch.graph.mixes_sequences else ALONE_GRID
        self._prompts = PromptParts(grid)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._slots = Slots(batch, grid or 1)
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
            new = sum(len(work.ids) for _, work, _ in plan)
            prompt_tokens = sum(len(work.ids) for request, work, _ in plan if request.reading)
            before = time.perf_counter()
            results = self._compute([work for _, work, _ in plan])
            pass_seconds = time.perf_counter() - before
            rows = new + sum(owed)
            if self._costs is not None and not prompt_tokens:
                self._costs.add(rows, pass_seconds)
            if new > prompt_tokens:
                self._prompts.limit.add(pass_seconds, prompt_tokens)
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
                request.borders = self._prompts.borders(request, sequence, shared)
            except Exception as error:
                events.append(self._fail(request, error))
        return events

    def _plan(self, events: list[Event]) -> list[Part]:
        """Choose the tokens of the next pass: one of each request that decodes, its draft, and parts of prompts."""
        decoding = [one for one in self._running if not one.reading]
        plan: list[Part] = []
        if len(decoding) < len(self._running):
            plan = self._prompts.choose([one for one in self._running if one.reading], bool(decoding))
            if not self.batch.graph.mixes_sequences:  # one prompt a pass: the others first the next time
                self._running.remove(plan[0][0])
                self._running.append(plan[0][0])
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
