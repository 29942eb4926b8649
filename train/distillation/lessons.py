"""The teacher's outputs for the batches of a run: looked up in what is stored, or computed in the step.

B batch, T time, K stored tokens, V tokens of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...contract.errors import UserError
from ..config.distillation import DistillationConfig
from ..data.corpus import Corpus
from ..data.windows.batches import Places
from .kl import Classes, TopTokens, loss_of, top_classes, whole_classes
from .stored_outputs import Outputs, StoredOutputs, joined
from .teacher import SharedIds, Teacher


class Part(NamedTuple):
    """A part of a batch, as a rank computes it: B sequences of T tokens."""

    ids: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64
    scored: Tensor  # (B, T) bool
    windows: Tensor  # (B,) int64: the number of each window in the text


class Lesson(NamedTuple):
    """What the teacher says about a batch."""

    classes: Callable[[Tensor], Classes]
    """From the logits (B, T, V) of the model, the two distributions to compare."""
    loss: Tensor  # (B, T): the teacher's own loss, at temperature 1
    choice: Tensor  # (B, T) int64: its most probable token
    layer_states: tuple[Tensor, ...] = ()  # (B, T, width) after the layers that were asked for


class Lessons(Protocol):
    """Gives a lesson for every batch."""

    def lesson(self, part: Part) -> Lesson:
        """Return the outputs for a part of a batch."""
        ...


class LiveLessons:
    """The teacher runs in every step; its whole distribution counts."""

    def __init__(self, teacher: Teacher, config: DistillationConfig) -> None:
        self.teacher, self.config = teacher, config
        self.layers = tuple(theirs for _, theirs in config.hidden_layers)

    def lesson(self, part: Part) -> Lesson:
        """Run the teacher on the sequences."""
        answer = self.teacher.answer(part.ids, self.layers)
        size = self.teacher.ids.size  # a padded embedding of the model has more rows

        def classes(logits: Tensor) -> Classes:
            return whole_classes(answer.logits, logits[..., :size], self.config.temperature)

        return Lesson(classes, loss_of(answer.logits, part.targets), answer.logits.argmax(-1), answer.layer_states)


class StoredLessons:
    """The outputs were computed before the first step, and are looked up by the place of each token in the text."""

    def __init__(
        self, corpus: Corpus, stored: Sequence[StoredOutputs], config: DistillationConfig, ids: SharedIds
    ) -> None:
        self.corpus, self.stored, self.config, self.ids = corpus, stored, config, ids
        self.streams = corpus.streams

    def lesson(self, part: Part) -> Lesson:
        """Look the outputs up.

        Raises:
            UserError: The sequences are not the text that the outputs are of.
        """
        (rows, length), device = part.ids.shape, part.ids.device
        places = self.corpus.places(part.windows.tolist(), length)
        assert places is not None  # `stored_lessons` refuses such a text
        outputs = self._read(places)
        self._require_text(part.ids.cpu().numpy(), part.scored.cpu().numpy(), places)

        def tensor(values: NDArray[np.floating | np.integer], dtype: torch.dtype) -> Tensor:
            shaped = torch.from_numpy(values.astype({torch.int64: np.int64}.get(dtype, np.float32)))
            return shaped.view(rows, length, *values.shape[1:]).to(device, dtype)

        top = TopTokens(
            tensor(outputs.ids, torch.int64), tensor(outputs.log_probs, torch.float32),
            tensor(outputs.rest, torch.float32),
        )  # fmt: skip

        def classes(logits: Tensor) -> Classes:
            return top_classes(top, logits[..., : self.ids.size], self.config.temperature)

        return Lesson(classes, tensor(outputs.loss, torch.float32), top.ids[..., 0])

    def _read(self, places: Places) -> Outputs:
        """Return the outputs of a batch, (B*T, ...); those of padding are of the token 0 of the text."""
        rows = zip(places.source.tolist(), places.place, strict=True)
        return joined([self.stored[number].read(np.maximum(place, 0)) for number, place in rows])

    def _require_text(self, ids: NDArray[np.int64], scored: NDArray[np.bool_], places: Places) -> None:
        for row, (number, place) in enumerate(zip(places.source.tolist(), places.place, strict=True)):
            stream = self.streams[number].tokens[np.maximum(place, 0)]
            if not ((stream == ids[row]) | ~scored[row]).all():
                raise UserError(
                    f"the step read other tokens of {self.corpus.names[number]} than the teacher, whose outputs are "
                    "stored for the text as it is; let the teacher run in every step: --set distillation.top_k=0"
                )
