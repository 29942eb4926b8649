"""Search the path from everything to little: at each cost the setting of least loss.

    path       starts at 0 in every mechanism and takes, at each step, the move with the least loss per saved cost. It
               looks a few notches ahead, because the first notch may save nothing and the second a lot. Then one sweep
               exchanges neighbouring moves where that improves the setting between them.
    reach      finds the setting on the path at a requested cost, by bisection between two settings of the path.

Every coordinate only rises along the path. So the thresholds move one way only, and the dial is monotone by design.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .mechanisms import Setting

NOTCHES = 12
"""Steps of each coordinate from 0 to 1."""
LOOK_AHEAD = (1, 3)
"""Notches of the moves that are measured at each step."""
BISECTIONS = 6
CLOSE = 0.002
"""Executed share: a setting this close to the requested cost is good enough."""


@dataclass(frozen=True)
class Measured:
    """A setting with its cost (executed share) and loss (nats per token) on the text to choose on."""

    setting: Setting
    cost: float
    loss: float


Measure = Callable[[Setting], Measured]


def path(measure: Measure, dimensions: int, least: float) -> Iterator[list[Measured]]:
    """Yield the path after each step, until its cost is at most `least` or nothing saves more; then the final path."""
    steps = [measure((0.0,) * dimensions)]
    yield steps
    while steps[-1].cost > least:
        best = _best_move(measure, steps[-1])
        if best is None:
            break
        steps = [*steps, best]
        yield steps
    yield _exchanged(measure, steps)


def _best_move(measure: Measure, here: Measured) -> Measured | None:
    """Return the next setting, with the least loss per saved cost; None if nothing saves any more."""
    for notches in (LOOK_AHEAD, (NOTCHES,)):  # the whole rest of a mechanism, if a few notches save nothing
        moves = [measure(setting) for setting in _moves(here.setting, notches)]
        saving = [move for move in moves if move.cost < here.cost]
        if saving:
            return min(saving, key=lambda move: (move.loss - here.loss) / (here.cost - move.cost))
    return None


def _moves(setting: Setting, notches: tuple[int, ...]) -> Iterator[Setting]:
    for i, coordinate in enumerate(setting):
        notch = round(coordinate * NOTCHES)
        for target in sorted({min(notch + step, NOTCHES) for step in notches} - {notch}):
            yield (*setting[:i], target / NOTCHES, *setting[i + 1 :])


def _exchanged(measure: Measure, steps: list[Measured]) -> list[Measured]:
    """Exchange neighbouring moves where that lowers the loss of the setting between them."""
    steps = list(steps)
    for k in range(1, len(steps) - 1):
        before, here, after = steps[k - 1 : k + 2]
        # Take the second move first: apply its changes to the setting before.
        other = tuple(b if h == a else a for b, h, a in zip(before.setting, here.setting, after.setting, strict=True))
        if other in (before.setting, after.setting):
            continue  # both moves belong to one mechanism
        swapped = measure(other)
        falls = before.cost > swapped.cost > after.cost
        if falls and _height(swapped, before, after) < _height(here, before, after):
            steps[k] = swapped
    return steps


def _height(middle: Measured, before: Measured, after: Measured) -> float:
    """Return the loss above the straight line between two settings."""
    share = (before.cost - middle.cost) / (before.cost - after.cost)
    return middle.loss - (before.loss + share * (after.loss - before.loss))


def reach(cost_of: Callable[[Setting], float], steps: list[Measured], wanted: float) -> Setting:
    """Find the setting on the path whose cost is closest to `wanted`, and not above it if possible."""
    below = next((k for k, step in enumerate(steps) if step.cost <= wanted), len(steps) - 1)
    if below == 0 or abs(steps[below].cost - wanted) <= CLOSE:
        return steps[below].setting
    before, after = steps[below - 1], steps[below]
    low, high = 0.0, 1.0  # low costs more than wanted
    best = after
    for _ in range(BISECTIONS):
        # The cost falls about evenly from one end to the other, so the first guess is close.
        share = (low + high) / 2 if low or high < 1 else (before.cost - wanted) / (before.cost - after.cost)
        setting = tuple(b + share * (a - b) for b, a in zip(before.setting, after.setting, strict=True))
        cost = cost_of(setting)
        if cost <= wanted:
            high, best = share, Measured(setting, cost, 0.0)
        else:
            low = share
        if cost <= wanted and wanted - cost <= CLOSE:
            break
    return best.setting
