"""The files of a run beside its checkpoints, and the room that they need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from ....contract.errors import UserError
from ....contract.file_names import CHAT_TEMPLATE, HELDOUT, TASKS, TOKENIZER
from ...config.run_config import RunConfig
from ...data.corpus import Corpus
from ...run.folder import Run

HELDOUT_BYTES = 256 * 1024
"""The most held-out text that is written, for export."""


def free_bytes(run: Run) -> int:
    """Return the free space of the disk that holds the run."""
    return shutil.disk_usage(run.path).free


def require_space(run: Run, parameters: int, free: Callable[[Run], int] = free_bytes) -> None:
    """Refuse to begin if not even one checkpoint fits on the disk.

    Raises:
        UserError: The disk has less room than the weights and two optimizer slots take.
    """
    needed, available = 3 * 4 * parameters, free(run)
    if available < needed:
        raise UserError(
            f"{run.path}: one checkpoint takes up to {needed / 2**20:.0f} MiB, the disk has "
            f"{available / 2**20:.0f} MiB; make room, or work in a folder on another disk"
        )


def write_beside(config: RunConfig, run: Run, corpus: Corpus, made_by: Mapping[str, Any]) -> None:
    """Write what export needs beside the checkpoints."""
    run.write_config(config)
    if config.origin is None:  # else the files of that run stay as they are
        run.write(TOKENIZER, corpus.tokenizer_json())
    run.write(HELDOUT, corpus.heldout_text(HELDOUT_BYTES))
    if corpus.has_tasks:
        each = HELDOUT_BYTES // len(corpus.tasks)
        tasks = [
            {
                "name": task.name,
                "token": None if task.lead is None else corpus.tokenizer.id_to_token(task.lead),
                "heldout": corpus.heldout_text(each, task),
            }
            for task in corpus.tasks
        ]
        run.write(TASKS, json.dumps({"format_version": 1, "tasks": tasks}, indent=1) + "\n")
    if corpus.chat_template:
        run.write(CHAT_TEMPLATE, corpus.chat_template)
    run.add_versions(made_by)
