"""The model and the optimizers of a run: new or from a checkpoint, on their device and over the ranks."""

from __future__ import annotations

from dataclasses import fields

import torch

from ..config.run_config import RunConfig
from ..model.continued import Taken, take_weights
from ..model.transformer import Transformer
from ..optim.optimizer import Optimizers
from ..parallel.placement import Placement
from ..parallel.world import World
from ..run.checkpoint import Checkpoint
from ..run.counters import Counters
from ..system.cache_folder import cache_folder
from ..system.randomness import restore_random, seed_all
from .compilation import compile_model


def assemble(
    config: RunConfig,
    device: torch.device,
    checkpoint: Checkpoint | None,
    world: World,
    origin: Checkpoint | None = None,
) -> tuple[Transformer, Optimizers, Counters, Taken | None]:
    """Build the model, its optimizers and the counters; `checkpoint` is resumed, `origin` gives a new run its weights.

    Every rank builds the whole model from the same seed or checkpoint, then keeps its part.

    Raises:
        UserError: `trainer.parallel` cannot distribute the model, or the checkpoint is of another model.
    """
    seed_all(config.trainer.seed)
    model = Transformer(config.model).to(device)
    if checkpoint is not None:
        model.load_state_dict(checkpoint.model_state)
    taken = take_weights(model, origin.model_state) if checkpoint is None and origin is not None else None
    if world.size == 1:
        placed = Placement(model)
    else:
        from ..parallel.strategy import place  # a second to import, and most runs have one process

        placed = place(model, config.trainer.parallel, compiled=config.trainer.compile)
    optimizers = Optimizers(model, config.optimizer, placed, by_layer=config.monitor.act == "lr")
    counters = Counters()
    if checkpoint is not None:
        slots = {name: value for name, value in checkpoint.optimizer_state.items() if not name.startswith("random.")}
        optimizers.load_state_tensors(slots)
        restore_random(checkpoint.optimizer_state, checkpoint.state["random"])
        if world.size > 1 and device.type == "cuda" and "random.cuda.0" in checkpoint.optimizer_state:
            torch.cuda.set_rng_state(checkpoint.optimizer_state["random.cuda.0"], device)  # all ranks draw alike
        counters = Counters(
            **{each.name: checkpoint.state[each.name] for each in fields(Counters) if each.name in checkpoint.state}
        )
    if config.trainer.compile:
        compile_model(model, cache_folder(config.data.cache_dir), device)
    return model, optimizers, counters, taken
