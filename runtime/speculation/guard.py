"""Stops guessing for a while where it measurably loses time, whatever the estimates promise."""

LOOK_SECONDS = 2e-6
"""Time to keep the index and search it, per token; a machine that is slower there has slower passes too."""
WORTH_LOOKING = 2
"""Drafts must gain this many times the time of looking: where a token takes 0.1 ms, looking rests after 75 in vain."""
MOST_LOST = 3.0
"""Loss, in plain passes, after which guessing rests."""
MOST_GAINED = 6.0
"""Gain, in plain passes, of which the next losses are paid."""
FIRST_REST = 128
"""Passes of the first rest; each later one is twice as long, up to `LONGEST_REST`, until the gain is at its most."""
LONGEST_REST = 4096


class Guard:
    """Counts what guessing gained and cost, in plain passes, and rests when it lost too much."""

    def __init__(self) -> None:
        self._balance = 0.0
        self._left = 0
        self._rest = FIRST_REST

    @property
    def resting(self) -> bool:
        """Whether nothing is to be guessed now."""
        return self._left > 0

    def count(self, gain: float) -> None:
        """Count one pass.

        Args:
            gain: The plain passes that it saved, less the time that it and the guess cost more.
        """
        if self._left:
            self._left -= 1
            return
        self._balance += gain
        if self._balance > MOST_GAINED:
            self._balance, self._rest = MOST_GAINED, FIRST_REST
        elif self._balance < -MOST_LOST:
            self._balance, self._left = 0.0, self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)
