"""How many replicas of a server run."""

from dataclasses import dataclass

from ...contract.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many replicas Ray runs, and what each takes."""

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    """Cores that Ray sets aside for a replica."""
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UserError(
                f"found {self.least} to {self.most} replicas, expected at least 1, and no fewer at most; "
                "type: --replicas 2:10"
            )


def parse_replicas(text: str) -> tuple[int, int]:
    """Read `2` or `2:10`.

    Raises:
        UserError: It is neither.
    """
    least, _, most = text.partition(":")
    try:
        return int(least), int(most or least)
    except ValueError:
        raise UserError(f"found --replicas {text}, expected a number or two; type: --replicas 2:10") from None
