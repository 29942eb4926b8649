"""What training moves besides the weights."""

from __future__ import annotations

from torch import Tensor, nn


class Buffers:
    """The buffers that a checkpoint holds, controllers above all: put back where a step is not taken."""

    def __init__(self, model: nn.Module) -> None:
        kept = model.state_dict(keep_vars=True)
        self._buffers = [buffer for name, buffer in model.named_buffers() if name in kept]
        self._before: list[Tensor] = []

    def keep(self) -> None:
        """Notes what they are now."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def put_back(self) -> None:
        """Makes them what they were at the last `keep`."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)
