"""The three ways to lie a model over ranks."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from ...contract.errors import UserError
from ..model.transformer import Transformer
from ..system import collectives
from . import Parallel
from .placement import Placement, Split, is_sharded, local
from .token_dispatch import ExpertParallel


def place(model: Transformer, parallel: Parallel, *, compiled: bool = False) -> Placement:
    """Lays a model whose weights are whole and alike on all ranks out over them; alone, it stays as it is.

    Raises:
        UserError: the model, or its compilation, does not go with it.
    """
    if collectives.ranks() == 1 or parallel == "replicate":
        return Placement(model)
    if parallel == "shard":
        return shard(model)  # its messages come before and after a block, so blocks compile as ever
    if compiled:
        raise UserError(
            "trainer.parallel is experts, where tokens travel in the middle of a block, which torch.compile does not "
            "take in one piece; leave --compile out, or --set trainer.parallel=shard"
        )
    return spread_experts(model)


def shard(model: Transformer) -> Placement:
    """Fully sharded data parallel: every matrix lies by its rows, gathered block by block while a pass needs it.

    Source: FSDP (Zhao et al. 2023, arXiv 2304.11277), as torch's `fully_shard`. Departs from it: what has one dimension
    or none (norms, biases, levels) stays whole on every rank: it is a thousandth of the weights, and a level is read
    outside its block.
    """
    small = {weight for weight in model.parameters() if weight.ndim < 2}
    mesh = init_device_mesh(model.embedding.weight.device.type, (collectives.ranks(),))
    for module in [*model.blocks(), model]:
        fully_shard(module, mesh=mesh, ignored_params=small)
    for each in model.modules():
        if isinstance(each, FSDPModule):  # the loss is that of the whole batch: gradients are summed, not averaged
            each.set_gradient_divide_factor(1.0)
            each.set_force_sum_reduction_for_comms(True)
    splits = {}
    for name, weight in model.named_parameters():
        if is_sharded(weight.data):
            splits[name] = Split(chunks(weight.shape[0]))
            mine = splits[name].mine
            assert local(weight.data).shape[0] == mine.stop - mine.start
    return Placement(model, splits)


def chunks(rows: int) -> tuple[int, ...]:
    """Where torch.chunk cuts so many rows for the ranks."""
    each = -(-rows // collectives.ranks())
    return tuple(min(rows, each * number) for number in range(collectives.ranks() + 1))


def spread_experts(model: Transformer) -> Placement:
    """Expert parallel: each rank holds some experts of every layer, whole, and their tokens travel to them.

    Source: GShard (Lepikhin et al. 2020, arXiv 2006.16668). Departs from it: no expert has a capacity, so no token is
    dropped, and what a rank gets is as much as the routers send it.

    Raises:
        UserError: there are no experts, or their number does not divide.
    """
    number, size = model.config.num_experts, collectives.ranks()
    if number == 1:
        raise UserError(
            "trainer.parallel is experts, but ffn.routing is dense: there are none; --set trainer.parallel=shard"
        )
    if number % size:
        raise UserError(
            f"trainer.parallel is experts, but {number} experts do not divide among {size} ranks; start a "
            f"number of ranks that divides {number}, or --set trainer.parallel=shard"
        )
    splits = {}
    for layer, block in enumerate(model.blocks()):
        moe = block.moe
        assert moe is not None
        split = Split(chunks(number))
        for name in ("gate_up", "down"):
            whole: torch.Tensor = getattr(moe, name).data
            setattr(moe, name, nn.Parameter(whole[split.mine].clone()))
            splits[f"layers.{layer}.moe.{name}"] = split
        moe.run_experts = ExpertParallel(number // size)
    return Placement(model, splits)
