"""Tokenised text, ready to train on."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ...contract.errors import UserError
from .augment.variants import series
from .augment.word_noise import Noise
from .batches import (
    Batch,
    DocumentWindows,
    Places,
    Row,
    StreamWindows,
    document_rows,
    sequential_rows,
    stack,
)
from .cache import Entry, Stream
from .order import Mixture, mix
from .stages import Stages
from .tokenizers import vocabulary_size


class Corpus:
    """Tokenised text, ready to train on. Made by `prepare`.

    Attributes:
        tokenizer: Text to tokens and back.
        vocab_size: Its tokens, added ones included.
        eos_id: The token id that ends a text.
        chat_template: The jinja2 text when any source holds conversations, else None.
        digest: Changes when content, tokenizer or settings do.
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
        val: list[Entry],
        weights: list[float],
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
        self.weights = tuple(weights)
        self._entries, self._val = entries, val
        self.val_is_trained_on = val_is_trained_on
        self._mixture = Mixture(weights)
        self._val_rows = sequential_rows if pack == "stream" else document_rows
        self._fills_windows = pack == "stream"
        without: list[Any] = [() for _ in entries]
        self._windows = [
            series([entry.train, *others], mix(seed, index), pack, self.eos_id, changing)
            for index, (entry, others, changing) in enumerate(
                zip(entries, variants or without, noise or [None] * len(entries), strict=True)
            )
        ]
        self._stages = Stages(self._windows, epochs) if any(epochs) else None
        self.train_tokens = sum(len(entry.train.tokens) - 1 for entry in entries)
        self.val_tokens = sum(len(entry.val.tokens) - 1 for entry in val)
        scored = sum(entry.stats["val_scored"] for entry in val)
        self.val_bytes_per_token = sum(entry.stats["val_scored_bytes"] for entry in val) / max(1, scored)

    def tokenizer_json(self) -> str:
        """Write the tokenizer as the text of a tokenizer.json."""
        return str(self.tokenizer.to_str(pretty=True))

    def batch(self, first: int, batch_size: int, length: int) -> Batch:
        """Take windows `first` to `first + batch_size - 1` of `length` tokens: (batch_size, length).

        A pure function of its arguments and the seed. Windows are numbered from 0 and each belongs to one epoch: taken
        in order, in batches of any sizes, none is repeated and none left out.

        Raises:
            UserError: the training text is shorter than one window.
        """
        self.require(length)
        dealt = (self._deal(number, length) for number in range(first, first + batch_size))
        return stack([self._windows[source].row(place, length) for source, place in dealt])

    def places(self, numbers: Sequence[int], length: int) -> Places | None:
        """Return where the tokens of windows `numbers` are in `streams`; None where augmentation changes the text."""
        dealt = [self._deal(number, length) for number in numbers]
        rows = []
        for source, place in dealt:
            windows = self._windows[source]
            if not isinstance(windows, StreamWindows | DocumentWindows):
                return None
            rows.append(windows.places(place, length))
        return Places(np.array([source for source, _ in dealt], dtype=np.int64), np.stack(rows))

    @property
    def is_augmented(self) -> bool:
        """Whether augmentation changes the text of a source while it is read."""
        return not all(isinstance(windows, StreamWindows | DocumentWindows) for windows in self._windows)

    @property
    def streams(self) -> list[Stream]:
        """The training text of each source, as it is without augmentation."""
        return [entry.train for entry in self._entries]

    def _deal(self, number: int, length: int) -> tuple[int, int]:
        """Return the source of window `number`, and the count of windows that this source had before it."""
        return self._stages.deal(number, length) if self._stages else self._mixture.deal(number)

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

    def val_windows(self, length: int, batch_size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        """Return the held-out text in order, in batches of windows; the last batch may have fewer rows.

        Windows do not overlap, every token is a target once, and the last window is padded; where training packs
        documents, windows are packed and scored in the same way. With `max_tokens` each source gives its share of that
        number, from its beginning.
        """
        rows: list[Row] = []
        for entry in self._val:
            size = len(entry.val.tokens) - 1
            limit = size if max_tokens is None else -(-size * max_tokens // max(1, self.val_tokens))
            for row in self._val_rows(entry.val, length, self.eos_id, limit):
                rows.append(row)
                if len(rows) == batch_size:
                    yield stack(rows)
                    rows = []
        if rows:
            yield stack(rows)

    def heldout_text(self, max_bytes: int) -> str:
        """Return the first held-out text, at most `max_bytes` of UTF-8, with the end token between documents.

        Each of several sources gives its share.
        """
        texts = []
        for entry in self._val:
            share = max_bytes * (len(entry.val.tokens) - 1) // max(1, self.val_tokens)
            texts.append(entry.heldout.encode()[:share].decode(errors="ignore"))
        joined = str(self.tokenizer.id_to_token(self.eos_id)).join(text for text in texts if text)
        return joined.encode()[:max_bytes].decode(errors="ignore")


def largest_power_of_two(limit: int) -> int:
    """Return the largest power of two that is at most `limit`, and at least 1."""
    return 1 << max(0, limit.bit_length() - 1)
