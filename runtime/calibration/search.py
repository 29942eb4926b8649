"""Finds the path from everything to little: at each cost the setting of least loss.

    path       from 0 in every mechanism; at each step the move that loses least for what it saves (look-ahead of a few
               notches, so that a first notch that saves nothing hides no second one that does), then one sweep that
               exchanges neighbouring moves where the setting between them becomes better
    reach      the setting on the path at an asked cost, by bisection between two settings of the path

Every coordinate only rises along the path. So the thresholds move one way only, and the dial is monotone by how it is
made, not by luck.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .mechanisms import Setting

NOTCHES = 12
LOOK_AHEAD = (1, 3)
BISECTIONS = 6
CLOSE = 0.002  # of the executed share: near enough to the asked one


@dataclass(frozen=True)
class Measured:
    """A setting, and what it costs (executed share) and loses (nats per token) on the text it is chosen on."""

    setting: Setting
    cost: float
    loss: float


Measure = Callable[[Setting], Measured]


def path(measure: Measure, dimensions: int, least: float) -> Iterator[list[Measured]]:
    """The path so far after each step, until its cost is at most `least` or nothing saves more; the last is whole."""
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
    """The next setting: least loss for what it saves. None where nothing saves any more."""
    for looks in (LOOK_AHEAD, (NOTCHES,)):  # the whole rest of a mechanism, if a few notches save nothing
        moves = [measure(setting) for setting in _moves(here.setting, looks)]
        saving = [move for move in moves if move.cost < here.cost]
        if saving:
            return min(saving, key=lambda move: (move.loss - here.loss) / (here.cost - move.cost))
    return None


def _moves(setting: Setting, looks: tuple[int, ...]) -> Iterator[Setting]:
    for i, coordinate in enumerate(setting):
        notch = round(coordinate * NOTCHES)
        for target in sorted({min(notch + look, NOTCHES) for look in looks} - {notch}):
            yield (*setting[:i], target / NOTCHES, *setting[i + 1 :])


def _exchanged(measure: Measure, steps: list[Measured]) -> list[Measured]:
    """The path with neighbouring moves in the other order, where the setting between them lies further below."""
    steps = list(steps)
    for k in range(1, len(steps) - 1):
        before, here, after = steps[k - 1 : k + 2]
        # The second move first: what it changes, on top of the setting before.
        other = tuple(b if h == a else a for b, h, a in zip(before.setting, here.setting, after.setting, strict=True))
        if other in (before.setting, after.setting):
            continue  # both moves were of one mechanism
        swapped = measure(other)
        falls = before.cost > swapped.cost > after.cost
        if falls and _height(swapped, before, after) < _height(here, before, after):
            steps[k] = swapped
    return steps


def _height(middle: Measured, before: Measured, after: Measured) -> float:
    """Loss above the straight line between two settings."""
    share = (before.cost - middle.cost) / (before.cost - after.cost)
    return middle.loss - (before.loss + share * (after.loss - before.loss))


def reach(cost_of: Callable[[Setting], float], steps: list[Measured], asked: float) -> Setting:
    """The setting on the path whose cost is the nearest to `asked` that was found, and not above where it can be."""
    below = next((k for k, step in enumerate(steps) if step.cost <= asked), len(steps) - 1)
    if below == 0 or abs(steps[below].cost - asked) <= CLOSE:
        return steps[below].setting
    before, after = steps[below - 1], steps[below]
    low, high = 0.0, 1.0  # low costs more than asked
    best = after
    for _ in range(BISECTIONS):
        # From one end to the other cost falls about evenly, so the first guess is near.
        share = (low + high) / 2 if low or high < 1 else (before.cost - asked) / (before.cost - after.cost)
        setting = tuple(b + share * (a - b) for b, a in zip(before.setting, after.setting, strict=True))
        cost = cost_of(setting)
        if cost <= asked:
            high, best = share, Measured(setting, cost, 0.0)
        else:
            low = share
        if cost <= asked and asked - cost <= CLOSE:
            break
    return best.setting
