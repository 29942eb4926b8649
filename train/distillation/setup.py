"""The distiller of a run: its teacher is checked against the run, and opened."""

from __future__ import annotations

import torch

from ...contract.errors import UserError
from ..config.distillation import DistillationConfig
from ..config.run_config import RunConfig
from ..data.corpus import Corpus
from ..parallel.world import World
from ..system.cache_folder import cache_folder
from ..system.progress import Progress
from .asking import stored_lessons
from .distiller import Distiller
from .lessons import Lessons, LiveLessons
from .teacher import Teacher, shared_ids
from .teacher_source import TeacherSource


def with_teacher(config: RunConfig, source: TeacherSource) -> RunConfig:
    """Return the config with the teacher named by its checkpoint and digest."""
    section = config.distillation
    assert section is not None
    return config.model_copy(update={"distillation": section.model_copy(update={"teacher": source.resolved})})


def make_distiller(
    config: RunConfig,
    source: TeacherSource | None,
    corpus: Corpus,
    *,
    device: torch.device,
    precision: str,
    display: Progress,
    world: World,
) -> Distiller:
    """Open the teacher of a run, or the outputs that are stored of it.

    Args:
        config: The config of the run, with its vocabulary.
        source: The teacher; None without one.
        corpus: The text.
        device: Where the run computes.
        precision: `fp32` or `bf16`.
        display: Shows what is done.
        world: The ranks.

    Raises:
        UserError: The teacher does not fit the run, or its outputs cannot be stored.
    """
    section = config.distillation
    lessons: Lessons | None = None
    if section is not None and source is not None:
        ids = shared_ids(corpus.tokenizer, source)
        require_layers(section, source)
        if section.top_k:
            lessons = stored_lessons(
                corpus, source, ids, section, length=config.sequence_length, tokens_to_read=tokens_to_read(config),
                folder=cache_folder(config.data.cache_dir), device=device, precision=precision, display=display,
                world=world,
            )  # fmt: skip
        else:
            require_context(config, source)
            display.log(f"teacher: {source.name}, runs in every step")
            lessons = LiveLessons(Teacher(source, ids, device, precision), section)
    return Distiller(config, lessons, device)


def tokens_to_read(config: RunConfig) -> int | None:
    """Return how many tokens a run reads that ends after a number of steps, with batches of one size."""
    trainer = config.trainer
    if trainer.steps is None or trainer.batch_schedule:
        return None
    return trainer.steps * trainer.batch_size * config.sequence_length


def require_layers(section: DistillationConfig, source: TeacherSource) -> None:
    """Refuse pairs of hidden layers that name a layer which the teacher does not have.

    Raises:
        UserError: There is one.
    """
    layers = source.model.num_layers
    for own, theirs in section.hidden_layers:
        if not 0 <= theirs < layers:
            raise UserError(
                f"distillation.hidden_layers pairs layer {own} with layer {theirs} of the teacher, which has {layers}; "
                f"name a layer from 0 to {layers - 1}"
            )


def require_context(config: RunConfig, source: TeacherSource) -> None:
    """Refuse sequences that the teacher cannot read whole.

    Raises:
        UserError: They are longer than its context.
    """
    if config.sequence_length > source.model.context_length:
        raise UserError(
            f"a sequence of the run has {config.sequence_length} tokens, the context of the teacher {source.name} "
            f"{source.model.context_length}; train on shorter ones: --set trainer.sequence_length="
            f"{source.model.context_length}; or let its outputs be stored, which reads the text in its own windows: "
            "--set distillation.top_k=16"
        )
