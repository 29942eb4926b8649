"""Copies of the states of one sequence, from which it can go back, in bounded number."""

from .states import MOST_COPIES, SPACING, Copy


class Checkpoints:
    """Copies of states by position, the number of tokens before them.

    Where there are too many, one is dropped that was made for its distance only; of those, the one whose neighbours are
    closest together, compared with how far back it is: so the copies are denser towards the end of the text.
    """

    def __init__(self) -> None:
        self._copies: dict[int, Copy] = {}
        self._wanted: set[int] = set()
        self._draft: tuple[int, Copy] | None = None

    def nearest(self, position: int, grid: int = 1) -> int:
        """Return the last position of a copy up to `position` that is a multiple of `grid`; 0 where there is none."""
        places = list(self._copies) if self._draft is None else [*self._copies, self._draft[0]]
        return max([place for place in places if place <= position and place % grid == 0], default=0)

    def at(self, position: int) -> Copy | None:
        """Return the copy of a position; None where there is none."""
        if self._draft is not None and self._draft[0] == position:
            return self._draft[1]
        return self._copies.get(position)

    def add(self, position: int, copy: Copy, *, wanted: bool) -> None:
        """Add a copy.

        Args:
            position: Tokens before it.
            copy: The states.
            wanted: Whether it was asked for at this very position.
        """
        self._copies[position] = copy
        if wanted:
            self._wanted.add(position)
        if len(self._copies) > MOST_COPIES:
            self._drop_one()

    def add_draft(self, position: int, copy: Copy) -> None:
        """Add the copy to which a draft goes back, in place of that of the last draft."""
        self._draft = position, copy

    def cut(self, position: int) -> None:
        """Drop the copies after a position."""
        for place in [place for place in self._copies if place > position]:
            del self._copies[place]
            self._wanted.discard(place)
        if self._draft is not None and self._draft[0] > position:
            self._draft = None

    def up_to(self, position: int) -> "Checkpoints":
        """Return the copies up to a position, for a sequence with the same tokens."""
        other = Checkpoints()
        other._copies = {place: copy for place, copy in self._copies.items() if place <= position}
        other._wanted = {place for place in self._wanted if place <= position}
        return other

    def _drop_one(self) -> None:
        places = sorted(self._copies)
        *candidates, last = places
        spaced = [place for place in candidates if place not in self._wanted]
        neighbours = dict(zip(candidates, zip([0, *places], places[1:], strict=False), strict=False))

        def density(place: int) -> float:
            before, after = neighbours[place]
            return (after - before) / (last - place + SPACING)

        dropped = min(spaced or candidates, key=density)
        del self._copies[dropped]
        self._wanted.discard(dropped)
