"""What the texts of a session share in order to guess ahead."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from ...contract.errors import UserError, WrongUsageError
from ..dial import Thresholds
from ..format.manifest import Manifest
from .dial_drafter import DialDrafter, Setting, Text, lower_settings
from .drafter import Drafter
from .ngram import NgramDrafter
from .pass_costs import PassCosts

Speculate = Literal["ngram", "dial", "off"]


def checked_speculate(value: str | None) -> None:
    """Check a setting.

    Raises:
        WrongUsageError: There is no such way to guess.
    """
    if value is not None and value not in get_args(Speculate):
        raise WrongUsageError(
            f"found speculate {value!r}, expected ngram, dial or off; leave it out for ngram where that changes nothing"
        )


class Speculation:
    """Makes the drafters of a session's texts, which share what was measured.

    Args:
        manifest: The model.
        exact: Whether a token's result does not depend on how many are computed in one pass. Otherwise a draft could
            change the text.
    """

    def __init__(self, manifest: Manifest, *, exact: bool) -> None:
        self.costs = PassCosts()
        self._manifest, self._exact = manifest, exact
        self._repeats = manifest.model.has_states
        self._settings: dict[bytes, list[Setting]] = {}  # of each setting of the dial, those below it

    def maker(self, speculate: Speculate | None, thresholds: Thresholds) -> Callable[[Text], Drafter] | None:
        """Return what makes the drafter of a text, None where nothing is guessed.

        Args:
            speculate: None takes "ngram" where the session is exact, else "off".
            thresholds: Those of the text.

        Raises:
            UserError: Guessing is requested, and the session is not exact.
        """
        if speculate == "off" or (speculate is None and not self._exact):
            return None
        if not self._exact:
            raise UserError(
                f"found speculate {speculate}, which needs the target cpu: on another target, tokens that are checked "
                "together get slightly other numbers than one after another, so the text could change; leave out "
                "--speculate, or make that target with: adaptive export --target cpu"
            )
        if speculate == "dial":
            settings = self._below(thresholds)
            repeats = self._repeats
            return lambda text: DialDrafter(
                text, settings, self.costs, lambda logits: int(np.argmax(logits)), repeats=repeats
            )
        return lambda _: NgramDrafter(self.costs, repeats=self._repeats)

    def _below(self, thresholds: Thresholds) -> list[Setting]:
        key = b"".join(values.tobytes() for values in vars(thresholds).values())
        if key not in self._settings:
            self._settings[key] = lower_settings(self._manifest, thresholds)
        return self._settings[key]
