"""The parts in which prompts are read, one part a pass."""

from ..execution.sequence import Sequence as Tokens
from ..execution.step import Work
from .prompt_limit import PromptLimit
from .request import Request

IDLE_PROMPT_TOKENS = 512
"""Tokens of prompts in one pass where no sequence decodes; `PromptLimit` says how many where some do."""
SCORED_TOKENS = 64
"""Tokens of a prompt in one pass where each needs its log-probability, which bounds the memory of the logits."""
LEAST_COPIED = 64
"""Least tokens of a prompt from one copy of the states to the next: a copy needs a pass of its own (decision 0050)."""

Part = tuple[Request, Work, list[int]]
"""Tokens of a pass for one request; the list is the draft at the end of them."""


class PromptParts:
    """Chooses how many tokens of which prompts the next pass reads.

    Args:
        grid: Where sequences are computed one after another, the multiples at which a pass ends; None where several
            share a pass.
    """

    def __init__(self, grid: int | None) -> None:
        self.limit = PromptLimit()
        self._grid = grid

    def choose(self, reading: list[Request], others_wait: bool) -> list[Part]:
        """Choose the parts for the next pass, of equal size where several prompts are read.

        Args:
            reading: Requests whose prompt is not read yet; not empty.
            others_wait: Whether sequences decode beside them.
        """
        if self._grid is not None:
            first = reading[0]
            assert first.sequence is not None
            return [_part(first, self._grid - len(first.sequence.ids) % self._grid)]
        left = self.limit.tokens if others_wait else IDLE_PROMPT_TOKENS
        parts = []
        for place, request in enumerate(sorted(reading, key=lambda one: one.reading)):
            most = request.reading if request.prompt_logprobs is None else min(request.reading, SCORED_TOKENS)
            count = min(max(left // (len(reading) - place), 1), most)  # what a short one leaves is shared
            left -= count
            parts.append(_part(request, count))
        return parts

    def borders(self, request: Request, sequence: Tokens, shared: int) -> tuple[int, ...]:
        """Choose where a prompt is read in two passes, with a copy of the states in between.

        That is where this prompt and one before it go their ways, since a third may begin like both (2411.19379), and
        before the last token, for another text after the same prompt. Where sequences run alone, a prefix ends at the
        grid, as passes do anyway.
        """
        if not sequence.recurrent or request.reads_all or self._grid is not None:
            return ()
        borders, before = [], len(sequence.ids)
        for border in (shared, request.prompt_tokens - 1):
            if border - before >= LEAST_COPIED:
                borders.append(border)
                before = border
        return tuple(borders)


def _part(request: Request, most: int) -> Part:
    assert request.sequence is not None
    begin = len(request.sequence.ids)
    end = min([begin + most, request.prompt_tokens, *(one for one in request.borders if one > begin)])
    logits = int(end == request.prompt_tokens and not request.embeds)
    if request.prompt_logprobs is not None:
        logits = end - begin
    return request, Work(request.sequence, request.ids[begin:end], logits), []
