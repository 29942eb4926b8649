"""The teacher is asked about a whole text before the first step, and its outputs are stored.

B batch, T time, V tokens of the tokenizer.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...contract.errors import UserError
from ..config.distillation import DistillationConfig
from ..data.cache import Stream
from ..data.corpus import Corpus
from ..parallel.world import World
from ..system.progress import Progress, duration
from .kl import loss_of, top_tokens
from .lessons import StoredLessons
from .stored_outputs import Kind, Outputs, StoredOutputs, digest_of_tokens, joined, windows_of
from .teacher import SharedIds, Teacher
from .teacher_source import TeacherSource

WINDOW = 1024
"""Least tokens that the teacher reads as one window, if its context allows: runs of shorter sequences share outputs."""
LOGITS_AT_ONCE = 2**25
"""Most numbers of logits that the teacher computes at once: 128 MiB."""
TOKENS_AT_ONCE = 8192
"""Most tokens that it reads at once, so that its activations stay near the processor."""


def stored_lessons(
    corpus: Corpus,
    source: TeacherSource,
    ids: SharedIds,
    config: DistillationConfig,
    *,
    length: int,
    tokens_to_read: int | None,
    folder: Path,
    device: torch.device,
    precision: str,
    display: Progress,
    world: World,
) -> StoredLessons:
    """Open the stored outputs of the training text; compute and store those that are missing.

    The ranks share the work. A rank that does not see the files of the others computes theirs too.

    Args:
        corpus: The text.
        source: The teacher.
        ids: The token ids that both share.
        config: The section.
        length: Tokens of a sequence of the run.
        tokens_to_read: Tokens that the run will read, if its end is a number of steps.
        folder: The cache folder.
        device: Where the teacher computes.
        precision: `fp32` or `bf16`.
        display: Shows the progress.
        world: The ranks.

    Raises:
        UserError: The outputs take more room than there is or than the config allows, or the text is changed while it
            is read.
    """
    if not corpus.reads_as_it_is:
        what = (
            "a task token begins each window" if corpus.has_tasks else "data.augment changes the text while it is read"
        )
        raise UserError(
            f"{what}, but stored outputs are those of the text as it is; let the teacher run in every step: --set "
            f"distillation.top_k=0; or leave {'the token' if corpus.has_tasks else 'data.augment'} out"
        )
    window = min(source.model.context_length, max(WINDOW, 2 * length))
    stored = [
        StoredOutputs(
            folder / "teachers",
            Kind(
                digest_of_tokens(stream.tokens), source.sha256, min(config.top_k, ids.size), config.temperature, window,
                ids.size, ids.own_end, precision,
            ),
            len(stream.tokens),
        )
        for stream in corpus.streams
    ]  # fmt: skip
    missing = [each.missing() for each in stored]
    size, tokens = sum(each.bytes for each in stored), sum(each.tokens for each in stored)
    lacking = sum(len(each.span(part)) for each, parts in zip(stored, missing, strict=True) for part in parts)
    require_room(size, lacking / tokens, config, folder, tokens)
    if not world.max_over_ranks(lacking):
        display.log(f"teacher: {source.name}, its outputs are stored: {size / 2**20:.0f} MiB in {folder / 'teachers'}")
        return StoredLessons(corpus, stored, config, ids)
    display.log(
        f"teacher: {source.name}; storing its outputs for {lacking:,} of {tokens:,} tokens, {size / 2**20:.0f} MiB in "
        f"{folder / 'teachers'}; a later run with this text and teacher finds them there"
    )
    if tokens_to_read and tokens_to_read < lacking:
        display.log(
            f"note: the run reads {tokens_to_read:,} tokens; if no other follows, the teacher has less to do with "
            "--set distillation.top_k=0"
        )
    began, teacher, done = time.monotonic(), Teacher(source, ids, device, precision), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count * world.size
        display.work("asking the teacher", min(done, lacking), lacking)

    for shared in (True, False):  # the second time those that other ranks have written on another disk
        for stream, each in zip(corpus.streams, stored, strict=True):
            parts = each.missing()
            mine = parts[world.rank :: world.size] if shared else parts
            world.run_together(partial(ask, teacher, stream, each, mine, advance))
    display.log(f"the teacher's outputs took {duration(time.monotonic() - began)}")
    return StoredLessons(corpus, stored, config, ids)


def require_room(size: int, lacking: float, config: DistillationConfig, folder: Path, tokens: int) -> None:
    """Refuse outputs that are larger than allowed, or than the disk.

    Raises:
        UserError: They are.
    """
    gib = size / 2**30
    cure = (
        "store fewer with a smaller --set distillation.top_k; or store none and let the teacher run in every step: "
        "--set distillation.top_k=0"
    )
    if gib > config.stored_gib:
        raise UserError(
            f"the teacher's outputs for {tokens:,} tokens take {gib:.1f} GiB at top_k {config.top_k}, "
            f"distillation.stored_gib allows {config.stored_gib:g}; raise it, or {cure}"
        )
    place = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(place).free
    if size * lacking > free:
        raise UserError(
            f"the teacher's outputs need {size * lacking / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} are "
            f"free; choose another folder with --set data.cache_dir=FOLDER, or {cure}"
        )


def ask(
    teacher: Teacher, stream: Stream, stored: StoredOutputs, parts: Sequence[int], advance: Callable[[int], None]
) -> None:
    """Compute and write parts of the outputs for a stream; `advance` is called with the tokens of each.

    Raises:
        UserError: The disk refuses.
    """
    kind, tokens = stored.kind, stored.tokens
    window = min(kind.window, tokens)
    at_once = max(1, min(LOGITS_AT_ONCE // teacher.source.model.vocab_size, TOKENS_AT_ONCE) // window)
    for part in parts:
        span = stored.span(part)
        groups = batches(windows_of(span, kind, tokens), at_once)
        stored.write(part, joined(answers(teacher, stream.tokens, kind, group, window) for group in groups))
        advance(len(span))


def answers(
    teacher: Teacher, text: NDArray[np.integer], kind: Kind, windows: Sequence[tuple[int, range]], length: int
) -> Outputs:
    """Run the teacher on some windows (first token, tokens to answer for) of `length` tokens."""
    ids = torch.from_numpy(np.stack([text[start : start + length].astype(np.int64) for start, _ in windows]))
    logits = teacher.answer(ids.to(teacher.device)).logits  # (B, T, V)
    parts = []
    for row, (start, answered) in enumerate(windows):
        own = logits[row, answered.start - start : answered.stop - start][None]  # (1, n, V)
        top = top_tokens(own, kind.count, kind.temperature)
        places = np.arange(answered.start, answered.stop)
        following = text[places % max(len(text) - 1, 1) + 1].astype(np.int64)  # the text is a ring
        loss = loss_of(own, torch.from_numpy(following)[None].to(own.device))
        parts.append(Outputs(*(value[0].cpu().numpy() for value in (*top, loss))))
    return joined(parts)


def batches(windows: Iterator[tuple[int, range]], size: int) -> Iterator[list[tuple[int, range]]]:
    """Group windows, `size` at a time."""
    while batch := list(islice(windows, size)):
        yield batch
