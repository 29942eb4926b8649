"""The model of a run with its optimizers, on its device and over its ranks, as a checkpoint left them or new."""

from __future__ import annotations

from dataclasses import fields

import torch

from ..config.run_config import RunConfig
from ..model.transformer import Transformer
from ..optim.optimizer import Optimizers
from ..parallel.placement import Placement
from ..parallel.world import World
from ..run.checkpoint import Checkpoint
from ..run.counters import Counters
from ..system.randomness import restore_random, seed_all
from .compilation import compile_model


def assemble(
    config: RunConfig, device: torch.device, found: Checkpoint | None, world: World
) -> tuple[Transformer, Optimizers, Counters]:
    """Every rank builds the whole model from the same seed or checkpoint, then keeps what is its own.

    Raises:
        UserError: the model does not go with `trainer.parallel`, or the checkpoint is of another one.
    """
    seed_all(config.trainer.seed)
    model = Transformer(config.model).to(device)
    if found is not None:
        model.load_state_dict(found.model_state)
    if world.size == 1:
        placed = Placement(model)
    else:
        from ..parallel.strategy import place  # a second to import, and most runs have one process

        placed = place(model, config.trainer.parallel, compiled=config.trainer.compile)
    optimizers = Optimizers(model, config.optimizer, placed, by_layer=config.monitor.act == "lr")
    counters = Counters()
    if found is not None:
        slots = {name: value for name, value in found.optimizer_state.items() if not name.startswith("random.")}
        optimizers.load_state_tensors(slots)
        restore_random(found.optimizer_state, found.state["random"])
        if world.size > 1 and device.type == "cuda" and "random.cuda.0" in found.optimizer_state:
            torch.cuda.set_rng_state(found.optimizer_state["random.cuda.0"], device)  # all ranks draw alike
        counters = Counters(
            **{each.name: found.state[each.name] for each in fields(Counters) if each.name in found.state}
        )
    if config.trainer.compile:
        compile_model(model, config, device)
    return model, optimizers, counters
