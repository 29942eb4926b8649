"""What can be set during a conversation."""

from collections.abc import Callable, Mapping

from ...contract.errors import UserError


def whole(value: float) -> int:
    """Return a number as a whole one.

    Raises:
        UserError: It is not whole.
    """
    if not value.is_integer():
        raise UserError(f"found {value:g}, expected a whole number")
    return int(value)


SETTINGS: Mapping[str, Callable[[float], float]] = {
    "temperature": float,
    "top_p": float,
    "min_p": float,
    "top_k": whole,
    "repetition_penalty": float,
    "max_new_tokens": whole,
    "seed": whole,
}
USAGES = ("none", "summary", "tokens")
