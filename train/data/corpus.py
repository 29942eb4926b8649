"""Tokenised text, ready to train on."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer

from ...contract.errors import UserError
from ...contract.messages import EOS
from .augment.variants import series
from .augment.word_noise import Noise
from .batches import Batch, Row, document_rows, sequential_rows, stack
from .cache import Entry, Stream
from .order import Mixture, mix
from .stages import Stages
from .tokenizers import eos_id, vocabulary_size


class Corpus:
    """Tokenised text, ready to train on. Made by `prepare`.

    `tokenizer`, `vocab_size` and `eos_id` (of `<|endoftext|>`) belong together; `chat_template` is the jinja2 text when
    any source holds conversations, else None; `digest` changes when content, tokenizer or settings do;
    `val_bytes_per_token` is bytes of held-out text per scored held-out token, so that bits per byte = mean loss in nats
    / ln 2 / val_bytes_per_token; `train_tokens` and `val_tokens` count tokens; `val_is_trained_on` says that all that
    is held out is trained on as well; `notes` are the sentences that were said while preparing.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
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
        """`variants` are rewritten training texts of each source, which take turns with its own; `noise` changes its
        windows."""
        self.tokenizer = tokenizer
        self.vocab_size = vocabulary_size(tokenizer)
        self.eos_id = eos_id(tokenizer)
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
        """The tokenizer as the text of a tokenizer.json."""
        return str(self.tokenizer.to_str(pretty=True))

    def batch(self, first: int, batch_size: int, length: int) -> Batch:
        """Windows `first` to `first + batch_size - 1` of those of `length` tokens: (batch_size, length).

        A pure function of its arguments and the seed. Windows are numbered from 0 on and each belongs to one epoch, so
        whoever takes them in their order, in batches of any sizes, repeats none and leaves none out.
        Raises UserError when the training text is shorter than one window.
        """
        self.require(length)
        dealt = (self._deal(number, length) for number in range(first, first + batch_size))
        return stack([self._windows[source].row(place, length) for source, place in dealt])

    def _deal(self, number: int, length: int) -> tuple[int, int]:
        """The source of window `number`, and how many windows that source had before it."""
        return self._stages.deal(number, length) if self._stages else self._mixture.deal(number)

    def where(self, first: int, batch_size: int, length: int) -> str:
        """Which windows of which sources a batch holds, as in `a.txt windows 16-19, b.txt window 3`."""
        dealt = sorted(self._deal(number, length) for number in range(first, first + batch_size))
        parts = []
        for source, group in groupby(dealt, key=lambda pair: pair[0]):
            places = [place for _, place in group]  # of one source they follow each other
            span = f"window {places[0]}" if len(places) == 1 else f"windows {places[0]}-{places[-1]}"
            parts.append(f"{self.names[source]} {span}")
        return ", ".join(parts)

    def stage(self, number: int, length: int) -> tuple[int, int | None]:
        """The first window of the stage that window `number` belongs to, and of the next; None in the last stage."""
        return self._stages.around(number, length) if self._stages else (0, None)

    def total_windows(self, length: int) -> int | None:
        """Windows in which every source has its epochs; None where they have no such number."""
        return self._stages.total(length) if self._stages else None

    def epoch(self, number: int, length: int) -> int:
        """Windows of one epoch of the source that window `number` is of; of all sources together where they mix."""
        if self._stages:
            return max(1, self._windows[self._deal(number, length)[0]].count(1, length))
        return max(1, sum(windows.count(1, length) for windows in self._windows))

    def require(self, length: int) -> None:
        """Raises UserError unless every source can fill a window of `length` tokens and something is held out."""
        if not self.val_tokens:
            raise UserError("nothing is held out")  # prepare refuses this; here for whoever builds a Corpus by hand
        for name, entry in zip(self.names, self._entries, strict=True):
            found = len(entry.train.tokens)
            if self._fills_windows and found < length + 1:
                raise UserError(
                    f"{name}: {found} training tokens, but one window of context length {length} needs {length + 1}; "
                    "give more "
                    f"text, or --set model.context_length={largest_power_of_two(found - 1)}"
                )

    def val_windows(self, length: int, batch_size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        """The held-out text in order: windows that do not overlap, every token a target once, the last window padded;
        or, where training packs documents, windows packed and scored in the same way.

        With `max_tokens` each source gives its share of that many, from its beginning. The last batch may have fewer
        rows.
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
        """The first held-out text, at most `max_bytes` of UTF-8, with `<|endoftext|>` between documents.

        Of several sources each gives its share.
        """
        texts = []
        for entry in self._val:
            share = max_bytes * (len(entry.val.tokens) - 1) // max(1, self.val_tokens)
            texts.append(entry.heldout.encode()[:share].decode(errors="ignore"))
        joined = EOS.join(text for text in texts if text)
        return joined.encode()[:max_bytes].decode(errors="ignore")


def largest_power_of_two(limit: int) -> int:
    """The largest power of two that is at most `limit`, and at least 1."""
    return 1 << max(0, limit.bit_length() - 1)
