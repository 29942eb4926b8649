"""Where the weights of a model lie: whole on every rank, or each rank with some rows of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..system import collectives

BUCKET = 1 << 23
"""Numbers that travel in one message, 32 MiB of float32: enough that a message costs more than its beginning."""


class Split(NamedTuple):
    """How the first dimension of a weight is cut: the first row of each rank, and at the end their number."""

    bounds: tuple[int, ...]

    @property
    def mine(self) -> slice:
        return slice(self.bounds[collectives.rank()], self.bounds[collectives.rank() + 1])


class Placement:
    """The weights that this rank moves, by name, and what it must ask the others to know of the whole.

    A weight is whole on all ranks, with a gradient that `reduce` sums over them; or it is split by rows (output rows of
    a matrix, experts of a stack) and its gradient is complete where it lies. Everything the optimizers do element by
    element needs no word of this; norms and Newton-Schulz steps do.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Mapping[str, Split] | None = None,
    ) -> None:
        """`splits` of the weights by name; those that are a DTensor are moved by their rows."""
        self.model = model
        self.weights: dict[str, nn.Parameter] = {}
        self._splits: dict[nn.Parameter, Split] = {}
        self._sources: dict[nn.Parameter, nn.Parameter] = {}
        for name, weight in model.named_parameters():
            name = name.replace("_orig_mod.", "")
            moved = weight
            if is_sharded(weight.data):
                moved = nn.Parameter(local(weight.data))  # of the same memory
                self._sources[moved] = weight
            if splits and name in splits:
                self._splits[moved] = splits[name]
            self.weights[name] = moved

    def is_split(self, weight: nn.Parameter) -> bool:
        return weight in self._splits

    def count(self) -> int:
        """Numbers in all weights of all ranks."""
        held = ((weight, self._splits.get(weight)) for weight in self.weights.values())
        return sum(w.numel() if s is None else s.bounds[-1] * math.prod(w.shape[1:]) for w, s in held)

    # --- gradients

    def reduce(self) -> None:
        """Makes the gradients those of the whole batch: call it once after the backward passes of a step."""
        if collectives.ranks() == 1:
            return
        for moved, source in self._sources.items():
            moved.grad = None if source.grad is None else local(source.grad)
            source.grad = None
        whole = [weight for weight in self.weights.values() if weight not in self._splits]
        for bucket in _buckets(whole):
            _sum_gradients(bucket)

    def forget(self) -> None:
        """Drops gradients that `reduce` has not taken."""
        for source in self._sources.values():
            source.grad = None

    def rest(self) -> None:
        """Lets go of weights that were gathered for a pass; what reads weights between passes finds its own rows."""
        if self._sources:
            from torch.distributed.fsdp import FSDPModule  # a second to import

            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    # --- lengths

    def squares(self, tensors: Sequence[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
        """The sum of the squares of each tensor, which lies as its weight does, ()."""
        found = [tensor.float().square().sum() for _, tensor in tensors]
        return self._over_ranks([weight for weight, _ in tensors], found)

    def norm(self, weights: Sequence[nn.Parameter]) -> Tensor:
        """The norm of the gradients of all weights together, ()."""
        parts = [[w.grad for w in weights if (w in self._splits) == split and w.grad is not None] for split in (0, 1)]
        whole = torch.nn.utils.get_total_norm(parts[0])
        if not self._splits:
            return whole
        (split,) = collectives.total(torch.nn.utils.get_total_norm(parts[1]).double().square())
        return (whole.double().square() + split).sqrt().to(whole.dtype)

    def norm_of_each(self, weight: nn.Parameter, tensor: Tensor) -> Tensor:
        """The norm of each matrix of a stack (E, 1, 1), or of the whole of anything else, ()."""
        if weight.ndim == 2 and weight in self._splits:
            return self.squares([(weight, tensor)])[0].sqrt()
        return norm_of_each(tensor)  # what is not cut, and the experts of a stack, none of which is

    def _over_ranks(self, weights: Sequence[nn.Parameter], found: list[Tensor]) -> list[Tensor]:
        split = [number for number, weight in enumerate(weights) if weight in self._splits]
        if split:
            for number, value in zip(split, collectives.total(*(found[number] for number in split)), strict=True):
                found[number] = value
        return found

    # --- whole tensors

    def whole(self, weight: nn.Parameter, tensor: Tensor) -> Tensor:
        """All rows of a tensor that lies as its weight does, on every rank."""
        split = self._splits.get(weight)
        if split is None or not tensor.ndim:
            return tensor
        sizes = [after - before for before, after in zip(split.bounds, split.bounds[1:], strict=False)]
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        everyones = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyones, padded)
        return torch.cat([each[:size] for each, size in zip(everyones, sizes, strict=True)])

    def own(self, weight: nn.Parameter, tensor: Tensor) -> Tensor:
        """The rows of a whole tensor that this rank holds."""
        split = self._splits.get(weight)
        return tensor if split is None or not tensor.ndim else tensor[split.mine]

    def model_state(self) -> dict[str, Tensor]:
        """The model's state as one process would have it, on every rank."""
        self.rest()
        state = {}
        for name, value in self.model.state_dict().items():
            name = name.replace("_orig_mod.", "")
            weight = self.weights.get(name)
            if is_sharded(value):
                value = _full(value)
            elif weight is not None:
                value = self.whole(weight, value)
            state[name] = value
        return state


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which this rank holds a part; without the second that importing that class takes."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """This rank's part of a DTensor."""
    found: Tensor = tensor.to_local()
    return found


def _full(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor()
    return found


def _buckets(weights: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for weight in weights:
        if weight.numel() > room or not buckets:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(weight)
        room -= weight.numel()
    return buckets


def _sum_gradients(weights: Sequence[nn.Parameter]) -> None:
    """Sums gradients over ranks in one message; a weight without one on any rank still has none."""
    like = weights[0]
    there = torch.tensor([weight.grad is not None for weight in weights], dtype=like.dtype, device=like.device)
    parts = [torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights]
    flat = torch.cat([there, *parts])
    dist.all_reduce(flat)
    counts = flat[: len(weights)].tolist()
    summed = torch.split(flat[len(weights) :], [weight.numel() for weight in weights])
    for weight, part, number in zip(weights, summed, counts, strict=True):
        weight.grad = part.view_as(weight) if number else None


def norm_of_each(weight: Tensor) -> Tensor:
    """The norm of each matrix of a stack (E, 1, 1), or of the whole of anything else, ()."""
    dims = (1, 2) if weight.ndim == 3 else None
    found: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=weight.ndim == 3)
    return found
