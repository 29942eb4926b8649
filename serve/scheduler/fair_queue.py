"""Who is next: jobs of many clients that wait for a slot."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass
class _Client(Generic[Item]):
    served: float
    """Work given to it while it was there."""
    waiting: list[tuple[float, int, float, Item]]
    """(when it would end if it began on arrival, number, work, job)."""
    running: int = 0


class FairQueue(Generic[Item]):
    """Jobs that wait, shared out by client.

    The next job is one of the client that was served least, so that a client with fifty jobs does not delay one with a
    single job; a client that comes, or comes back, starts level with the one served least. (Virtual token counters:
    Sheng et al. 2024, "Fairness in Serving Large Language Models".) Of one client, short jobs go first, but a job is
    overtaken only by those that came within its own length: none waits for ever.
    """

    def __init__(self) -> None:
        self._clients: dict[str, _Client[Item]] = {}
        self._count = 0
        self._number = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the jobs that wait, in no particular order."""
        return (entry[-1] for client in self._clients.values() for entry in client.waiting)

    def of(self, client: str) -> int:
        """Return how many jobs of `client` wait."""
        return len(self._clients[client].waiting) if client in self._clients else 0

    def add(self, item: Item, client: str, *, now: float, work: float, seconds: float) -> None:
        """Let a job wait.

        Args:
            item: The job.
            client: Whose it is.
            now: Time of its arrival, in seconds.
            work: What it counts for between clients, such as tokens.
            seconds: How long it is expected to run.
        """
        if client not in self._clients:
            level = min((one.served for one in self._clients.values()), default=0.0)
            self._clients[client] = _Client(level, [])
        self._number += 1
        self._clients[client].waiting.append((now + seconds, self._number, work, item))
        self._count += 1

    def take(self) -> Item | None:
        """Return the job that is next, which runs from now on until `done`; None where no job waits."""
        ready = [client for client in self._clients.values() if client.waiting]
        if not ready:
            return None
        client = min(ready, key=lambda one: (one.served, one.running, min(one.waiting)[:2]))
        entry = min(client.waiting, key=lambda one: one[:2])
        client.waiting.remove(entry)
        client.served += entry[2]
        client.running += 1
        self._count -= 1
        return entry[3]

    def remove(self, item: Item, client: str) -> bool:
        """Drop a job that waits; return whether it did."""
        own = self._clients.get(client)
        entry = None if own is None else next((one for one in own.waiting if one[3] is item), None)
        if own is None or entry is None:
            return False
        own.waiting.remove(entry)
        self._count -= 1
        self._forget_if_idle(client)
        return True

    def done(self, client: str, *, correction: float = 0.0) -> None:
        """Note that a job of `client` has ended.

        Args:
            client: Whose it was.
            correction: The work that it took minus the work that was expected of it.
        """
        own = self._clients[client]
        own.running -= 1
        own.served += correction
        self._forget_if_idle(client)

    def _forget_if_idle(self, client: str) -> None:
        """Forget a client that has nothing here, so that the memory does not grow with the clients of a year."""
        own = self._clients[client]
        if not own.waiting and not own.running:
            del self._clients[client]
