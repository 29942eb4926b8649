"""Stop strings: text stays pending while it could still become one."""

from collections.abc import Iterable

from ....contract.errors import WrongUsageError

MAX_STOPS = 64
MAX_LENGTH = 1024  # characters


def stops_of(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the stop strings of a field of JSON: one text, several, or none."""
    return (given,) if isinstance(given, str) else tuple(given or ())


def checked_stops(stops: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stop strings.

    Raises:
        WrongUsageError: One is no text, empty or too long, or there are too many.
    """
    if len(stops) > MAX_STOPS:
        raise WrongUsageError(f"found {len(stops)} stop strings, expected at most {MAX_STOPS}; give fewer")
    for stop in stops:
        if not isinstance(stop, str):
            raise WrongUsageError(f'found the stop string {stop!r}, expected a text, such as "{stop}"')
        if not stop:
            raise WrongUsageError("found an empty stop string, which every text contains; give at least one character")
        if len(stop) > MAX_LENGTH:
            raise WrongUsageError(
                f"found a stop string of {len(stop)} characters, expected at most {MAX_LENGTH}; shorten it"
            )
    return stops


class StopWatch:
    """Releases text up to the first stop string, and never a part of one that is still growing.

    A call costs time in proportion to the new text and the length of the stop strings, not to the text so far.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = checked_stops(stops)
        self._pending = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add `text` and return what can be shown now: always "" once a stop string was found."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._pending += text
        places = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if places:
            self.stopped = True
            ready, self._pending = self._pending[: min(places)], ""
            return ready
        cut = len(self._pending) - max(self._overlap(stop) for stop in self._stops)
        ready, self._pending = self._pending[:cut], self._pending[cut:]
        return ready

    def flush(self) -> str:
        """Return the text that is still pending, at the end."""
        ready, self._pending = self._pending, ""
        return ready

    def _overlap(self, stop: str) -> int:
        """Return the length of the longest end of the pending text with which `stop` begins."""
        for length in range(min(len(stop) - 1, len(self._pending)), 0, -1):
            if self._pending.endswith(stop[:length]):
                return length
        return 0
