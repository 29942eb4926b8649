"""Reads a safetensors file one tensor at a time, so that it may be larger than memory."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


class MappedTensors(Mapping[str, Tensor]):
    """The tensors of a file by name, in their own dtypes.

    Each access maps the file anew, and its memory is freed with the tensor. One mapping of the whole file would keep
    every page that was ever read.

    Raises:
        OSError: The file cannot be read.
        SafetensorError: It is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, "pt") as file:
            self._shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header."""
        return self._shapes[name]
