"""The model and the optimizers of a run: new or from a checkpoint, on their device and over the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from ....contract.errors import UserError
from ...config.run_config import RunConfig
from ...distillation.distiller import is_of_distiller
from ...model.config.lora import LoraConfig
from ...model.continued import Taken, take_weights
from ...model.lora import adapted
from ...model.transformer import Transformer
from ...optim.optimizer import Optimizers
from ...parallel.placement import Placement
from ...parallel.world import World
from ...run.checkpoints.adapted import AdaptedTensors, read_base
from ...run.checkpoints.checkpoint import Checkpoint
from ...run.counters import Counters
from ...system.cache_folder import cache_folder
from ...system.randomness import restore_random, seed_all
from .compilation import compile_model


def assemble(
    config: RunConfig,
    device: torch.device,
    checkpoint: Checkpoint | None,
    world: World,
    origin: Checkpoint | None = None,
    adapters: Mapping[str, Tensor] | None = None,
    run: Path = Path(),
) -> tuple[Transformer, Optimizers, Counters, Taken | None]:
    """Build the model, its optimizers and the counters; `checkpoint` is resumed, `origin` gives a new run its weights.

    Of a run with adapters the frozen weights are read from the folder `run`; `adapters` are those that it begins with.

    Every rank builds the whole model from the same seed or checkpoint, then keeps its part.

    Raises:
        UserError: `trainer.parallel` cannot distribute the model, or the checkpoint is of another model.
    """
    seed_all(config.trainer.seed)
    taken = None
    if config.lora is not None:
        model = with_adapters(config, config.lora, device, checkpoint, adapters, run)
    else:
        model = Transformer(config.model).to(device)
        if checkpoint is not None:
            model.load_state_dict(checkpoint.model_state)
        elif origin is not None:
            taken = take_weights(model, origin.model_state)
    if world.size == 1:
        placed = Placement(model)
    else:
        from ...parallel.strategy import place  # a second to import, and most runs have one process

        placed = place(model, config.trainer.parallel, compiled=config.trainer.compile)
    optimizers = Optimizers(model, config.optimizer, placed, by_layer=config.monitor.act == "lr")
    counters = Counters()
    if checkpoint is not None:
        slots = {
            name: value
            for name, value in checkpoint.optimizer_state.items()
            if not name.startswith("random.") and not is_of_distiller(name)
        }
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


def with_adapters(
    config: RunConfig,
    lora: LoraConfig,
    device: torch.device,
    checkpoint: Checkpoint | None,
    adapters: Mapping[str, Tensor] | None,
    run: Path,
) -> Transformer:
    """Build the frozen model of a run with its adapters: new ones, those of `adapters`, or those of `checkpoint`.

    Raises:
        UserError: The frozen weights cannot be read or are of another model, or a target has no layers.
    """
    state = None if checkpoint is None else checkpoint.model_state
    base = state.base if isinstance(state, AdaptedTensors) else read_base(run)
    own = state.own if isinstance(state, AdaptedTensors) else adapters or {}
    try:
        model = adapted(config.model, lora, base, device)
    except KeyError as error:
        raise UserError(
            f"the frozen weights have no {error.args[0]}, which settings of model add; with lora the model stays as it "
            "was: leave those settings out"
        ) from error
    except ValueError as error:
        raise UserError(str(error)) from error
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in own:
                value.copy_(own[name])
    return model
