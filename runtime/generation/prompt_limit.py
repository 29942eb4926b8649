"""How many tokens of prompts a pass takes beside sequences that decode, from the measured times of passes."""

from collections import deque
from statistics import median

LONGEST_PASS = 2.5
"""Time of a pass with tokens of prompts, in that of a pass without: so long a sequence that decodes waits."""
LEAST_TOKENS, MOST_TOKENS = 32, 128
"""Limits of the limit: fewer tokens read the weights too often, more gain nothing (decision 0028)."""
BEGIN_TOKENS = 64
"""The limit until both kinds of pass were measured."""
SAMPLES = 9
"""Newest passes of each kind that count."""


class PromptLimit:
    """The most tokens of prompts in one pass, where sequences decode that wait for it."""

    def __init__(self) -> None:
        self._decoding: deque[float] = deque(maxlen=SAMPLES)  # seconds of passes without a prompt
        self._token: deque[float] = deque(maxlen=SAMPLES)  # seconds that each token of a prompt added to a pass

    def add(self, seconds: float, prompt_tokens: int) -> None:
        """Record a pass in which sequences decoded.

        Args:
            seconds: Time of the pass.
            prompt_tokens: Tokens of prompts in it, 0 for none.
        """
        if not prompt_tokens:
            self._decoding.append(seconds)
        elif self._decoding:
            self._token.append((seconds - median(self._decoding)) / prompt_tokens)

    @property
    def tokens(self) -> int:
        """The limit for the next pass."""
        if not self._token:
            return BEGIN_TOKENS
        allowed = (LONGEST_PASS - 1) * median(self._decoding)
        token = median(self._token)
        if allowed >= MOST_TOKENS * token:  # also where noise made the time of a token negative
            return MOST_TOKENS
        return max(int(allowed / token), LEAST_TOKENS)
