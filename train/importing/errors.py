"""Errors of an import."""

from ...contract.errors import UserError


class ForeignFileError(UserError):
    """A file of a foreign model that is damaged, hostile, or not what its name says."""


class UnsupportedModelError(UserError):
    """A model of a family, or with a setting, that this program cannot compute; the message names the feature."""


class TensorsError(UserError):
    """Tensors of a foreign model that are missing, left over, or of another shape than its config says."""


LONGEST = 100
"""Characters of a name or a reason from a foreign file that a message shows."""


def listed(names: list[str], most: int = 4) -> str:
    """Join names for a message: the first `most`, and how many more there are."""
    shown = ", ".join(short(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def short(text: object, longest: int = LONGEST) -> str:
    """Return a name or a reason from a foreign file as one line of printable characters, shortened."""
    line = "".join(char if char.isprintable() else "?" for char in str(text))
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
