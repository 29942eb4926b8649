"""A copy of the buffers that training changes besides the weights."""

from __future__ import annotations

from torch import Tensor, nn


class Buffers:
    """The buffers that a checkpoint holds, mainly those of controllers: restored when a step is skipped."""

    def __init__(self, model: nn.Module) -> None:
        saved = model.state_dict(keep_vars=True)
        self._buffers = [buffer for name, buffer in model.named_buffers() if name in saved]
        self._before: list[Tensor] = []

    def copy(self) -> None:
        """Copy their present values."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Restore the values of the last `copy`."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)
