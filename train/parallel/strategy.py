"""The three ways to distribute a model over ranks."""

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
    """Distribute a model whose weights are whole and equal on all ranks; a process alone keeps it as it is.

    Raises:
        UserError: the model, or its compilation, does not fit `parallel`.
    """
    if collectives.ranks() == 1 or parallel == "replicate":
        return Placement(model)
    if parallel == "shard":
        return shard(model)  # its messages come before and after a block, so blocks compile as usual
    if compiled:
        raise UserError(
            "trainer.parallel is experts, which exchanges tokens in the middle of a block; torch.compile does not "
            "compile that in one piece; leave --compile out, or --set trainer.parallel=shard"
        )
    return spread_experts(model)


def shard(model: Transformer) -> Placement:
    """Shard every matrix by rows, to be gathered block by block while a pass needs it (fully sharded data parallel).

    Source: FSDP (Zhao et al. 2023, arXiv 2304.11277), as torch's `fully_shard`. Departs from it: weights of one
    dimension or none (norms, biases, levels) stay whole on every rank. They are a thousandth of all weights, and
    a level is read outside its block.
    """
    if model.config.recursion.times > 1:
        raise UserError(
            "trainer.parallel is shard, but model.recursion runs the same weights in several layers, which cannot be "
            "gathered once for each; --set trainer.parallel=replicate"
        )
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
    """Return where torch.chunk splits `rows` rows for the ranks."""
    each = -(-rows // collectives.ranks())
    return tuple(min(rows, each * number) for number in range(collectives.ranks() + 1))


def spread_experts(model: Transformer) -> Placement:
    """Give each rank some whole experts of every layer, to which tokens are sent (expert parallel).

    Source: GShard (Lepikhin et al. 2020, arXiv 2006.16668). Departs from it: experts have no capacity limit, so no
    token is dropped, and a rank computes as many tokens as the routers send it.

    Raises:
        UserError: there are no experts, or their number does not divide.
    """
    number, size = model.config.num_experts, collectives.ranks()
    if number == 1:
        raise UserError(
            "trainer.parallel is experts, but model.ffn.routing is dense, so there are no experts; "
            "--set trainer.parallel=shard"
        )
    if number % size:
        raise UserError(
            f"trainer.parallel is experts, but {number} experts do not divide among {size} ranks; start a "
            f"number of ranks that divides {number}, or --set trainer.parallel=shard"
        )
    splits = {}
    for layer, block in enumerate(model.blocks()):
        moe = block.moe
        if moe is None or block.source is not None:
            continue
        split = Split(chunks(number))
        for name in moe.stacks():
            whole: torch.Tensor = getattr(moe, name).data
            setattr(moe, name, nn.Parameter(whole[split.mine].clone()))
            splits[f"layers.{layer}.moe.{name}"] = split
        moe.run_experts = ExpertParallel(number // size)
    return Placement(model, splits)
