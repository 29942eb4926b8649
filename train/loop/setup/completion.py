"""Values of a config that follow from the text: the size of the vocabulary, and the number of steps."""

from __future__ import annotations

from collections.abc import Sequence

from ....contract.errors import UserError
from ...config.run_config import RunConfig
from ...data.corpus import Corpus
from ...model.config.model import ModelConfig
from ...optim.batch_size import steps_for


def with_vocabulary(config: RunConfig, corpus: Corpus) -> RunConfig:
    """Return the config with the size of the model's vocabulary filled in from the tokenizer.

    Raises:
        UserError: `model.vocab_size` is smaller than the vocabulary of the tokenizer.
    """
    size = config.model.vocab_size
    if size and size < corpus.vocab_size:
        raise UserError(
            f"model.vocab_size is {size}, but the tokenizer has {corpus.vocab_size} tokens; leave it out to take the "
            f"tokenizer's, or --set model.vocab_size={corpus.vocab_size} or more"
        )
    model = config.model.model_copy(update={"vocab_size": size or corpus.vocab_size})
    return config.model_copy(update={"model": with_gates(model, [task.name for task in config.data.tasks])})


def with_gates(model: ModelConfig, tasks: Sequence[str]) -> ModelConfig:
    """Return the model with the names of its tasks, if it has gates per task.

    Raises:
        UserError: It has gates for other tasks.
    """
    if not model.ffn.task_bias:
        return model
    if model.tasks and model.tasks != tuple(tasks):
        raise UserError(
            f"the model has gates for the tasks {', '.join(model.tasks)}, but data.tasks has {', '.join(tasks)}; name "
            "the same tasks in the same order, or train a new model"
        )
    return model.model_copy(update={"tasks": tuple(tasks)})


def with_end(config: RunConfig, corpus: Corpus) -> RunConfig:
    """Return the config with `trainer.steps` filled in from the epochs of its sources.

    Left as it is if steps or seconds are given.
    """
    trainer = config.trainer
    if trainer.steps is not None or trainer.max_seconds is not None:
        return config
    windows = corpus.total_windows(config.sequence_length)
    steps = None if windows is None else steps_for(windows, trainer.batch_size, trainer.batch_schedule)
    return config.model_copy(update={"trainer": trainer.model_copy(update={"steps": steps})})
