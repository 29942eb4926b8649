"""Gates per task, folded into the bias of each router: an exported model serves one task."""

import difflib
from dataclasses import replace

import torch

from ...contract.errors import UserError
from ...train.run.checkpoints.checkpoint import Checkpoint

GATES = ".moe.task_bias"
"""End of the name of a layer's gates, (tasks, E)."""


def with_gates_of(checkpoint: Checkpoint, task: str | None) -> Checkpoint:
    """Return the checkpoint with the gates of `task` as the bias of its routers.

    A checkpoint without gates per task stays as it is.

    Raises:
        UserError: The model has gates and `task` is None or not one of its tasks; or it has none and `task` is given.
    """
    model = checkpoint.config.model
    names = model.tasks
    if not model.ffn.task_bias:
        if task is not None:
            raise UserError(
                f"{checkpoint.path} has no gates per task, so the task {task!r} changes nothing; leave --task out (a "
                "task token asks for a task in the prompt)"
            )
        return checkpoint
    if task not in names:
        found = "is given" if task is None else f"is called {task!r}"
        near = difflib.get_close_matches(task or "", names, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(
            f"{checkpoint.path} has gates for the tasks {', '.join(names)}; none of them {found}{hint} Choose one, and "
            f"a folder for it: adaptive export {checkpoint.run.name} --task {names[0]} --out {names[0]}"
        )
    place = names.index(task)
    state = {name: tensor for name, tensor in checkpoint.model_state.items() if not name.endswith(GATES)}
    for name in checkpoint.model_state:
        if name.endswith(GATES):
            bias = f"{name.removesuffix(GATES)}.moe.router.bias"
            gates = checkpoint.model_state[name][place].float()
            state[bias] = gates + state[bias].float() if bias in state else torch.clone(gates)
    ffn = model.ffn.model_copy(update={"task_bias": False, "router_bias": True})
    config = checkpoint.config.model_copy(update={"model": model.model_copy(update={"tasks": (), "ffn": ffn})})
    return replace(checkpoint, config=config, model_state=state)
