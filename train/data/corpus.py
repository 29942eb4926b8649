"""Tokenised text, ready to train on."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...contract.errors import UserError
from .augment.variants import series
from .augment.word_noise import Noise
from .cache import Entry, Stream
from .config import SamplingConfig
from .stages import Stages
from .tasks import Task
from .tokenizers.ids import vocabulary_size
from .windows.batches import (
    Batch,
    DocumentWindows,
    Places,
    Row,
    StreamWindows,
    document_rows,
    sequential_rows,
    stack,
)
from .windows.order import MovingMixture, mix


class Corpus:
    """Tokenised text, ready to train on. Made by `prepare`.

    Attributes:
        tokenizer: Text to tokens and back.
        vocab_size: Its tokens, added ones included.
        eos_id: The token id that ends a text.
        chat_template: The jinja2 text when any source holds conversations, else None.
        digest: Changes when content, tokenizer or settings do.
        tasks: The tasks; one without a name where the config has none.
        train_tokens: Tokens to train on, of all sources.
        val_tokens: Tokens held out.
        val_bytes_per_token: Bytes of held-out text per scored held-out token, so that bits per byte = mean loss in nats
            / ln 2 / val_bytes_per_token.
        val_is_trained_on: Whether all held-out text is trained on as well.
        notes: The sentences that were logged while preparing.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        eos_id: int,
        entries: list[Entry],
        tasks: Sequence[Task],
        sampling: SamplingConfig,
        names: list[str],
        pack: str,
        seed: int,
        digest: str,
        chat_template: str | None,
        notes: list[str],
        epochs: Sequence[int | None] = (),
        val_is_trained_on: bool = False,
        variants: Sequence[Sequence[Stream]] = (),
        noise: Sequence[Noise | None] = (),
    ) -> None:
        """Set up the corpus from the results of `prepare`.

        `variants` are rewritten training texts of each source, which take turns with its own; `noise` changes its
        windows.
        """
        self.tokenizer = tokenizer
        self.vocab_size = vocabulary_size(tokenizer)
        self.eos_id = eos_id
        self.chat_template = chat_template
        self.digest = digest
        self.notes = tuple(notes)
        self.names = tuple(names)
        self.tasks = tuple(tasks)
        self.sampling = sampling
        self._entries = entries
        self._val = [(entry, task.lead) for task in tasks for entry in task.val]
        self.val_is_trained_on = val_is_trained_on
        self._mixture = MovingMixture(self._weights([task.share for task in tasks]))
        self._task_of = [number for number, task in enumerate(tasks) for _ in task.sources]
        self._val_rows = sequential_rows if pack == "stream" else document_rows
        self._fills_windows = pack == "stream"
        without: list[Any] = [() for _ in entries]
        self._windows = [
            series(
                [entry.train, *others], mix(seed, index), pack, self.eos_id, changing, tasks[self._task_of[index]].lead
            )
            for index, (entry, others, changing) in enumerate(
                zip(entries, variants or without, noise or [None] * len(entries), strict=True)
            )
        ]
        self._stages = Stages(self._windows, epochs) if any(epochs) else None
        self.train_tokens = sum(len(entry.train.tokens) - 1 for entry in entries)
        self.val_tokens = sum(task.val_tokens for task in tasks)
        scored = sum(task.val_scored for task in tasks)
        self.val_bytes_per_token = sum(entry.stats["val_scored_bytes"] for entry, _ in self._val) / max(1, scored)

    @property
    def has_tasks(self) -> bool:
        """Whether the config names tasks."""
        return bool(self.tasks[0].name)

    @property
    def weights(self) -> tuple[float, ...]:
        """The present share of each source in the training windows."""
        return tuple(self._mixture.weights)

    def _weights(self, shares: Sequence[float]) -> list[float]:
        """Return the share of each source, from those of the tasks."""
        return [share * weight for share, task in zip(shares, self.tasks, strict=True) for weight in task.weights]

    def set_shares(self, shares: Sequence[float], read: Mapping[int, int]) -> None:
        """Change the shares of the tasks from the next window on; `read` maps each length to the windows read of it."""
        self._mixture.change(self._weights(shares), read)

    def shares(self) -> list[float]:
        """Return the present share of each task in the training windows."""
        shares = [0.0] * len(self.tasks)
        for task, weight in zip(self._task_of, self._mixture.weights, strict=True):
            shares[task] += weight
        return shares

    def mixture_state(self) -> dict[str, Any]:
        """Return the state of the mixture for a checkpoint, where `set_shares` is used."""
        return self._mixture.state()

    def restore_mixture(self, state: Mapping[str, Any]) -> None:
        """Continue with the mixture of a checkpoint."""
        self._mixture.restore(state)

    def tasks_of(self, first: int, batch_size: int, length: int) -> NDArray[np.int64]:
        """Return the number of the task of each window of a batch: (batch_size,)."""
        numbers = range(first, first + batch_size)
        return np.array([self._task_of[self._deal(number, length)[0]] for number in numbers], np.int64)

    def tokenizer_json(self) -> str:
        """Write the tokenizer as the text of a tokenizer.json."""
        return str(self.tokenizer.to_str(pretty=True))

    def batch(self, first: int, batch_size: int, length: int) -> Batch:
        """Take windows `first` to `first + batch_size - 1` of `length` tokens: (batch_size, length).

        A pure function of its arguments and the seed, and of `set_shares` where that is used. Windows are numbered from
        0 and each belongs to one epoch: taken in order, in batches of any sizes, none is repeated and none left out.

        Raises:
            UserError: the training text is shorter than one window.
        """
        self.require(length)
        dealt = (self._deal(number, length) for number in range(first, first + batch_size))
        return stack([self._windows[source].row(place, length) for source, place in dealt])

    def places(self, numbers: Sequence[int], length: int) -> Places | None:
        """Return where the tokens of windows `numbers` are in `streams`; None where they are other tokens.

        Augmentation changes the text, and windows of a task with a token begin with that.
        """
        dealt = [self._deal(number, length) for number in numbers]
        rows = []
        for source, place in dealt:
            windows = self._windows[source]
            if not self.reads_as_it_is or not isinstance(windows, StreamWindows | DocumentWindows):
                return None
            rows.append(windows.places(place, length))
        return Places(np.array([source for source, _ in dealt], dtype=np.int64), np.stack(rows))

    @property
    def reads_as_it_is(self) -> bool:
        """Whether windows hold the tokens of the text: no source is augmented, and no task has a token."""
        plain = all(isinstance(windows, StreamWindows | DocumentWindows) for windows in self._windows)
        return plain and all(task.lead is None for task in self.tasks)

    @property
    def streams(self) -> list[Stream]:
        """The training text of each source, as it is without augmentation."""
        return [entry.train for entry in self._entries]

    def _deal(self, number: int, length: int) -> tuple[int, int]:
        """Return the source of window `number`, and the count of windows that this source had before it."""
        return self._stages.deal(number, length) if self._stages else self._mixture.deal(number, length)

    def where(self, first: int, batch_size: int, length: int) -> str:
        """Name the windows of a batch and their sources, as in `a.txt windows 16-19, b.txt window 3`."""
        dealt = sorted(self._deal(number, length) for number in range(first, first + batch_size))
        parts = []
        for source, group in groupby(dealt, key=lambda pair: pair[0]):
            places = [place for _, place in group]  # those of one source are consecutive
            span = f"window {places[0]}" if len(places) == 1 else f"windows {places[0]}-{places[-1]}"
            parts.append(f"{self.names[source]} {span}")
        return ", ".join(parts)

    def stage(self, number: int, length: int) -> tuple[int, int | None]:
        """Return the first window of the stage of window `number`, and of the next stage (None in the last)."""
        return self._stages.around(number, length) if self._stages else (0, None)

    def total_windows(self, length: int) -> int | None:
        """Count the windows until every source has had its epochs; None where the last source is endless."""
        return self._stages.total(length) if self._stages else None

    def epoch(self, number: int, length: int) -> int:
        """Count the windows in one epoch of the source of window `number`; of all sources together where they mix."""
        if self._stages:
            return max(1, self._windows[self._deal(number, length)[0]].count(1, length))
        return max(1, sum(windows.count(1, length) for windows in self._windows))

    def require(self, length: int) -> None:
        """Check that every source fills a window of `length` tokens and that some text is held out.

        Raises:
            UserError: a source is too short, or no text is held out.
        """
        if not self.val_tokens:
            raise UserError("nothing is held out; give more text")  # for a Corpus built by hand: prepare refuses this
        for name, entry in zip(self.names, self._entries, strict=True):
            tokens = len(entry.train.tokens)
            if self._fills_windows and tokens < length + 1:
                raise UserError(
                    f"{name}: {tokens} training tokens, but one window of context length {length} needs {length + 1}; "
                    "give more "
                    f"text, or --set model.context_length={largest_power_of_two(tokens - 1)}"
                )

    def val_windows(
        self, length: int, batch_size: int, max_tokens: int | None = None, task: Task | None = None
    ) -> Iterator[Batch]:
        """Return the held-out text in order, in batches of windows; the last batch may have fewer rows.

        Windows do not overlap, every token is a target once, and the last window is padded; where training packs
        documents, windows are packed and scored in the same way. With `max_tokens` each source gives its share of that
        number, from its beginning. With `task` only its text.
        """
        rows: list[Row] = []
        entries = self._val if task is None else [(entry, task.lead) for entry in task.val]
        total = self.val_tokens if task is None else task.val_tokens
        for entry, lead in entries:
            size = len(entry.val.tokens) - 1
            limit = size if max_tokens is None else -(-size * max_tokens // max(1, total))
            for row in self._val_rows(entry.val, length, self.eos_id, limit, lead):
                rows.append(row)
                if len(rows) == batch_size:
                    yield stack(rows)
                    rows = []
        if rows:
            yield stack(rows)

    def heldout_text(self, max_bytes: int, task: Task | None = None) -> str:
        """Return the first held-out text, at most `max_bytes` of UTF-8, with the end token between documents.

        Each of several sources gives its share. With `task` only its text.
        """
        texts = []
        total = self.val_tokens if task is None else task.val_tokens
        for entry in [entry for entry, _ in self._val] if task is None else task.val:
            share = max_bytes * (len(entry.val.tokens) - 1) // max(1, total)
            texts.append(entry.heldout.encode()[:share].decode(errors="ignore"))
        joined = str(self.tokenizer.id_to_token(self.eos_id)).join(text for text in texts if text)
        return joined.encode()[:max_bytes].decode(errors="ignore")


def largest_power_of_two(limit: int) -> int:
    """Return the largest power of two that is at most `limit`, and at least 1."""
    return 1 << max(0, limit.bit_length() - 1)
