"""Stop strings: text is held back while it could still become one."""

from ...contract.errors import WrongUsageError

MAX_STOPS = 64
MAX_LENGTH = 1024  # characters


def checked_stops(stops: tuple[str, ...]) -> tuple[str, ...]:
    """The stop strings, or WrongUsageError for an empty one, one too long, or too many."""
    if len(stops) > MAX_STOPS:
        raise WrongUsageError(f"found {len(stops)} stop strings, at most {MAX_STOPS} are watched for; give fewer")
    for stop in stops:
        if not stop:
            raise WrongUsageError("found an empty stop string, which every text holds; give at least one character")
        if len(stop) > MAX_LENGTH:
            raise WrongUsageError(f"found a stop string of {len(stop)} characters, at most {MAX_LENGTH}; shorten it")
    return stops


class StopWatch:
    """Releases text up to the first stop string, and never a part of one that is still growing.

    A call costs time in proportion to the new text and the length of the stop strings, not to the text so far.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = checked_stops(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that can be shown after `text` has come; "" for ever once a stop string was found."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        ready, self._held = self._held, ""
        return ready

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text with which `stop` begins."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
