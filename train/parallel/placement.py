"""The placement of a model's weights: whole on every rank, or some rows of them on each."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..system import collectives

BUCKET = 1 << 23
"""Numbers of one message, 32 MiB of float32: enough that the latency of a message does not matter."""


class Split(NamedTuple):
    """The split of the first dimension of a weight: the first row of each rank, then the number of rows."""

    bounds: tuple[int, ...]

    @property
    def mine(self) -> slice:
        """The rows of this rank."""
        return slice(self.bounds[collectives.rank()], self.bounds[collectives.rank() + 1])


class Placement:
    """The weights that this rank updates, by name, and what it needs from the others.

    A weight is whole on all ranks, and `reduce` sums its gradient over them; or it is split by rows (output rows of a
    matrix, experts of a stack), and the gradient of each part is complete on its rank. Element-wise operations of the
    optimizers ignore the difference; norms and Newton-Schulz steps do not.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Mapping[str, Split] | None = None,
    ) -> None:
        """Collect the weights of `model`, with the `splits` of some by name; of a DTensor this rank has its rows."""
        self.model = model
        self.weights: dict[str, nn.Parameter] = {}
        self._splits: dict[nn.Parameter, Split] = {}
        self._sources: dict[nn.Parameter, nn.Parameter] = {}
        self._frozen = {
            name for name, weight in model.named_parameters(remove_duplicate=False) if not weight.requires_grad
        }
        for name, weight in model.named_parameters():
            name = name.replace("_orig_mod.", "")
            if name in self._frozen:
                continue
            own = weight
            if is_sharded(weight.data):
                own = nn.Parameter(local(weight.data))  # of the same memory
                self._sources[own] = weight
            if splits and name in splits:
                self._splits[own] = splits[name]
            self.weights[name] = own

    def is_split(self, weight: nn.Parameter) -> bool:
        """Return whether other ranks have other rows of this weight."""
        return weight in self._splits

    def first_row(self, weight: nn.Parameter) -> int:
        """Return the number of this rank's first row of a weight, counted over all ranks."""
        return self._splits[weight].mine.start if weight in self._splits else 0

    def count(self) -> int:
        """Count the numbers in all weights of all ranks."""
        pairs = ((weight, self._splits.get(weight)) for weight in self.weights.values())
        return sum(w.numel() if s is None else s.bounds[-1] * math.prod(w.shape[1:]) for w, s in pairs)

    # --- gradients

    def reduce(self) -> None:
        """Make the gradients those of the whole batch; call it once after the backward passes of a step."""
        if collectives.ranks() == 1:
            return
        for own, source in self._sources.items():
            own.grad = None if source.grad is None else local(source.grad)
            source.grad = None
        whole = [weight for weight in self.weights.values() if weight not in self._splits]
        for bucket in _buckets(whole):
            _sum_gradients(bucket)

    def forget(self) -> None:
        """Drop gradients that `reduce` has not used."""
        for source in self._sources.values():
            source.grad = None

    def rest(self) -> None:
        """Free the weights that were gathered for a pass; between passes each rank has its own rows."""
        if self._sources:
            from torch.distributed.fsdp import FSDPModule  # takes a second to import

            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    # --- norms

    def squares(self, tensors: Sequence[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
        """Return the sum of the squares of each tensor, (); each tensor is split like its weight."""
        sums = [tensor.float().square().sum() for _, tensor in tensors]
        return self._over_ranks([weight for weight, _ in tensors], sums)

    def norm(self, weights: Sequence[nn.Parameter]) -> Tensor:
        """Return the joint norm, (), of the gradients of the weights."""
        parts = [[w.grad for w in weights if (w in self._splits) == split and w.grad is not None] for split in (0, 1)]
        whole = torch.nn.utils.get_total_norm(parts[0])
        if not self._splits:
            return whole
        (split,) = collectives.total(torch.nn.utils.get_total_norm(parts[1]).double().square())
        return (whole.double().square() + split).sqrt().to(whole.dtype)

    def norm_of_each(self, weight: nn.Parameter, tensor: Tensor) -> Tensor:
        """Return the norm of each matrix of a stack (E, 1, 1), or of any other tensor as a whole, ()."""
        if weight.ndim == 2 and weight in self._splits:
            return self.squares([(weight, tensor)])[0].sqrt()
        return norm_of_each(tensor)  # no expert of a stack is itself split

    def _over_ranks(self, weights: Sequence[nn.Parameter], sums: list[Tensor]) -> list[Tensor]:
        split = [number for number, weight in enumerate(weights) if weight in self._splits]
        if split:
            for number, value in zip(split, collectives.total(*(sums[number] for number in split)), strict=True):
                sums[number] = value
        return sums

    # --- whole tensors

    def whole(self, weight: nn.Parameter, tensor: Tensor) -> Tensor:
        """Gather all rows of a tensor that is split like its weight; the result is the same on every rank."""
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
        """Return the rows of a whole tensor that belong to this rank."""
        split = self._splits.get(weight)
        return tensor if split is None or not tensor.ndim else tensor[split.mine]

    def model_state(self) -> dict[str, Tensor]:
        """Return the state of the whole model, as one process would have it; the same on every rank.

        Frozen weights are left out.
        """
        self.rest()
        state = {}
        for name, value in self.model.state_dict().items():
            name = name.replace("_orig_mod.", "")
            if name in self._frozen:
                continue
            weight = self.weights.get(name)
            if is_sharded(value):
                value = _full(value)
            elif weight is not None:
                value = self.whole(weight, value)
            state[name] = value
        return state


def is_sharded(tensor: Tensor) -> bool:
    """Return whether it is a DTensor, without importing that class, which takes a second."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """Return this rank's part of a DTensor."""
    part: Tensor = tensor.to_local()
    return part


def _full(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor()
    return whole


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
    """Sum gradients over ranks in one message; a weight that has none on any rank still has none."""
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
    """Return the norm of each matrix of a stack (E, 1, 1), or of any other tensor as a whole, ()."""
    dims = (1, 2) if weight.ndim == 3 else None
    norms: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=weight.ndim == 3)
    return norms
