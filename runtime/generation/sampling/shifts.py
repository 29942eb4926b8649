"""What is added to the logits of tokens: biases, and penalties for what the text holds already."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ShiftSettings(Protocol):
    """The settings of `Sampling` that add to logits."""

    @property
    def frequency_penalty(self) -> float:
        """For each time that the text holds the token."""

    @property
    def presence_penalty(self) -> float:
        """Once for a token that the text holds."""

    @property
    def logit_bias(self) -> Mapping[int, float]:
        """By token id."""


class Shifts:
    """The sum of bias and penalties of each token that has any; a token costs the same however long the text is."""

    def __init__(self, settings: ShiftSettings, vocab_size: int) -> None:
        self._frequency, self._presence = settings.frequency_penalty, settings.presence_penalty
        self._bias = dict(settings.logit_bias)
        self._places: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._ids = np.zeros(vocab_size, np.int32)
        self._values = np.zeros(vocab_size, np.float32)
        for token, bias in self._bias.items():
            self._set(token, bias)

    @staticmethod
    def needed(settings: ShiftSettings) -> bool:
        """Return whether the settings add anything to a logit."""
        return bool(settings.frequency_penalty or settings.presence_penalty or settings.logit_bias)

    @property
    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The ids, and what is added to their logits."""
        count = len(self._places)
        return self._ids[:count], self._values[:count]

    def add(self, token: int) -> None:
        """Count a token of the generated text."""
        if self._frequency or self._presence:
            count = self._counts[token] = self._counts.get(token, 0) + 1
            self._set(token, self._bias.get(token, 0.0) - self._frequency * count - self._presence)

    def _set(self, token: int, value: float) -> None:
        place = self._places.setdefault(token, len(self._places))
        self._ids[place], self._values[place] = token, value
