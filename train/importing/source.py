"""The parts of an import that all formats share: where tensors come from, and what a reader returns."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ...contract.generation_settings import GenerationSettings
from ..model.config.model import ModelConfig
from ..run.checkpoints.tensor_file import LazyTensor
from .errors import TensorsError, listed

Work = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class TensorSource(Protocol):
    """The tensors of a file or folder by its own names. Nothing is read before it is asked for."""

    def names(self) -> AbstractSet[str]:
        """Return the names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which `read` returns a tensor, from the header."""

    def read(self, name: str) -> Tensor:
        """Read one tensor in that dtype; a file that stores blocks of integers gives float32."""


class Claims:
    """Takes tensors from a source, and keeps account: one that is missing or left over is an error.

    Args:
        source: The tensors.
        place: The file or folder, for messages.
        prefix: Is put before every name, such as `model.`.
    """

    def __init__(self, source: TensorSource, place: str, prefix: str = "") -> None:
        self.source, self.place, self.prefix = source, place, prefix
        self._names = source.names()
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, which stays in the account as not taken.

        Raises:
            TensorsError: It is missing.
        """
        self._require(name)
        return self.source.shape(self.prefix + name)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> LazyTensor:
        """Take a tensor; it is read when the checkpoint is written.

        Args:
            name: Its name without the prefix.
            shape: The shape that the config of the model implies; None accepts any.

        Raises:
            TensorsError: It is missing, or of another shape.
        """
        full = self._require(name)
        actual = self.source.shape(full)
        if shape is not None and actual != shape:
            raise TensorsError(
                f"{full} in {self.place} has the shape {list(actual)}, its config implies {list(shape)}: the weights "
                "and the config are of two models; download both again"
            )
        self._taken.add(full)
        return LazyTensor(actual, self.source.dtype(full), lambda: self.source.read(full))

    def _require(self, name: str) -> str:
        full = self.prefix + name
        if full not in self._names:
            raise TensorsError(
                f"{self.place} has no tensor {full}, which its config implies; found {len(self._names)} tensors. "
                "Download the model again, or correct its config"
            )
        return full

    def ignore(self, name: str) -> None:
        """Mark a tensor as known and not needed, if it is there."""
        self._taken.add(self.prefix + name)

    def ignore_full(self, name: str) -> None:
        """Mark a tensor by its name with the prefix as known and not needed, if it is there."""
        self._taken.add(name)

    def require_all_taken(self) -> None:
        """Check that no tensor was left over.

        Raises:
            TensorsError: One was, so part of the model would be left out.
        """
        unused = sorted(self._names - self._taken)
        if unused:
            raise TensorsError(
                f"{self.place} has tensors that this program has no use for: {listed(unused)}; without them the "
                "imported model would compute something else. Import the model that it was made from, if there is one"
            )


def concatenate(parts: list[LazyTensor], dim: int = 0) -> LazyTensor:
    """Join tensors along an axis; those of several dtypes become the wider one."""
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    dtype = wider(parts)
    return LazyTensor(tuple(shape), dtype, lambda: torch.cat([part.read().to(dtype) for part in parts], dim))


def stack(parts: list[LazyTensor]) -> LazyTensor:
    """Put tensors of one shape behind each other along a new first axis, one at a time."""
    shape, dtype = (len(parts), *parts[0].shape), wider(parts)

    def read() -> Tensor:
        whole = torch.empty(shape, dtype=dtype)
        for place, part in enumerate(parts):
            whole[place] = part.read()
        return whole

    return LazyTensor(shape, dtype, read)


def wider(parts: list[LazyTensor]) -> torch.dtype:
    """Return the dtype that holds the values of all parts."""
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    return dtype


def transpose(tensor: LazyTensor) -> LazyTensor:
    """Exchange the last two axes."""
    shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])
    return LazyTensor(shape, tensor.dtype, lambda: tensor.read().transpose(-1, -2).contiguous())


def rows(tensor: LazyTensor, start: int, stop: int, dim: int = 0) -> LazyTensor:
    """Take a range along an axis."""
    shape = list(tensor.shape)
    shape[dim] = stop - start
    return LazyTensor(
        tuple(shape), tensor.dtype, lambda: tensor.read().narrow(dim, start, stop - start).clone()
    )  # a clone, so that the rest is freed


def reshape(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """Give the values another shape."""
    return LazyTensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))


def scaled(tensor: LazyTensor, factor: float) -> LazyTensor:
    """Multiply by a factor: a power of two in the tensor's own dtype, any other in float32, so that it is exact."""
    if factor == 1:
        return tensor
    mantissa = factor.hex().partition("p")[0]
    dtype = tensor.dtype if mantissa in ("0x1.0000000000000", "-0x1.0000000000000") else torch.float32
    return LazyTensor(tensor.shape, dtype, lambda: tensor.read().to(dtype) * factor)


def plus_one(tensor: LazyTensor) -> LazyTensor:
    """Add 1 in float32: the norms of Gemma store w and multiply by 1 + w."""
    return LazyTensor(tensor.shape, torch.float32, lambda: tensor.read().float() + 1)


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from."""

    source: str
    """The path that was imported, or the name of the repository on the hub where the path tells it."""
    format: str
    """`huggingface` or `gguf`."""
    family: str
    """The family as the file names it, such as `qwen3_moe`."""
    licence: str | None
    """The licence that the model states; None where it states none."""
    files: Mapping[str, str]
    """SHA-256 of every file that was read, by name."""


@dataclass(frozen=True)
class ForeignModel:
    """A model as a reader returns it, and as `run_writer` writes it."""

    config: ModelConfig
    tensors: Mapping[str, LazyTensor]
    """All parameters by our names, in our layouts. A tied output head is left out."""
    tokenizer: str
    """The text of its tokenizer.json."""
    generation: GenerationSettings
    provenance: Provenance
    templates: Mapping[str, str] = field(default_factory=dict)
    """Chat templates by name; `default` is the main one. `generation.templates` is filled in from it."""
    notes: tuple[str, ...] = ()
    """Lines for the user: settings of the model that were left out, and why that is harmless."""
