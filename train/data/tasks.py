"""The tasks of a corpus: parts of its text with their own weight and held-out text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...contract.errors import UserError
from .cache import Entry
from .config import DataConfig, SamplingConfig, TaskConfig
from .sources.parts import Part, share_out


@dataclass(frozen=True)
class Task:
    """One task of a corpus; a run without tasks has one without a name."""

    name: str
    loss_weight: float
    sources: tuple[int, ...]
    """Numbers of its sources in the corpus."""
    weights: tuple[float, ...]
    """Share of each of them in its windows."""
    share: float
    """Its share of the training windows at the start."""
    val: tuple[Entry, ...]
    """Its held-out text."""
    lead: int | None
    """Id of the token that begins its texts; None for none."""

    @property
    def val_tokens(self) -> int:
        """Tokens held out."""
        return sum(len(entry.val.tokens) - 1 for entry in self.val)

    @property
    def val_scored(self) -> int:
        """Held-out tokens that are scored."""
        return sum(entry.stats["val_scored"] for entry in self.val)

    @property
    def val_bytes_per_token(self) -> float:
        """Bytes of held-out text per scored held-out token."""
        return sum(entry.stats["val_scored_bytes"] for entry in self.val) / max(1, self.val_scored)


def make_tasks(
    data: DataConfig,
    train: Sequence[Sequence[Part]],
    val: Sequence[Sequence[Part]],
    entry_of: Mapping[Part, Entry],
    leads: Sequence[int | None],
) -> list[Task]:
    """Make the tasks of a corpus.

    Args:
        data: The section with the tasks.
        train: The sources of each task.
        val: The held-out sources of each task.
        entry_of: Their tokenised text.
        leads: The id of the token of each task.

    Raises:
        UserError: no held-out text of a task is scored, or given shares leave nothing for the others.
    """
    configs = data.each_task
    tokens = [[len(entry_of[part].train.tokens) - 1 for part in parts] for parts in train]
    shares = task_shares(configs, [sum(counts) for counts in tokens], data.sampling)
    tasks: list[Task] = []
    first = 0
    for config, parts, held, counts, share, lead in zip(configs, train, val, tokens, shares, leads, strict=True):
        task = Task(
            name=config.name,
            loss_weight=config.loss_weight,
            sources=tuple(range(first, first + len(parts))),
            weights=tuple(share_out([part.name for part in parts], [part.weight for part in parts], counts)),
            share=share,
            val=tuple(entry_of[part] for part in held),
            lead=lead,
        )
        if not task.val_scored:
            sizes = ", ".join(f"{part.name}: {part.num_bytes} bytes" for part in held)
            cure = f"val: FILE in the task {task.name}" if task.name else "--val"
            raise UserError(
                f"no held-out part is left to measure on ({sizes}; val_fraction {data.val_fraction:g}); "
                f"give more text, a larger --set data.val_fraction=0.3, or a file of its own with {cure}"
            )
        tasks.append(task)
        first += len(parts)
    return tasks


def task_shares(tasks: Sequence[TaskConfig], tokens: Sequence[int], sampling: SamplingConfig) -> list[float]:
    """Return the share of each task in the training windows at the start, from its number of training tokens.

    Raises:
        UserError: the given shares leave nothing for tasks without one.
    """
    sizes = [count ** (1 / sampling.temperature) for count in tokens]
    return share_out([task.name for task in tasks], [task.share for task in tasks], sizes, "share", "task")


def identity_of_tasks(data: DataConfig) -> list[object]:
    """Return what is part of the digest of a corpus where there are tasks."""
    if not data.tasks:
        return []
    settings = [
        [task.name, len(task.sources), task.loss_weight, task.loss_on, task.share, task.token] for task in data.tasks
    ]
    return ["tasks", settings, data.sampling.model_dump(mode="json")]
