"""The text of a run and its tokenizer: the `data:` and `tokenizer:` sections of the config."""

import difflib
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ..system.section import Section
from .augment.config import AugmentConfig

TOKENIZER_KINDS = ("bpe", "words", "chars", "bytes")
DEFAULT_VOCAB_SIZE = 4096


class SourceConfig(Section):
    """One source of text."""

    path: str
    """A file, a folder, a pattern such as `src/**/*.py`, `hf:NAME[:CONFIG[:SPLIT]]` or `builtin:NAME`. A relative path
    is looked up in `data.dir`; `~` is the home folder."""
    weight: float | None = Field(default=None, gt=0)
    """The share of the training windows that come from this source, above 0. Sources without a weight share what the
    others leave, each in proportion to its tokens. Not for sources with `epochs`."""
    text_field: str | None = None
    """The field of a record that holds the text, instead of `data.text_field`."""
    epochs: int | None = Field(default=None, ge=1)
    """Epochs of this source before the next one begins, at least 1. Either every source has epochs, or every one but
    the last, which is then read until the run ends."""
    augment: AugmentConfig | None = None
    """Variation of this source, instead of `data.augment`."""

    @field_validator("path")
    @classmethod
    def _not_empty(cls, path: str) -> str:
        if not path:
            raise ValueError("a path of no characters; expected a file, a folder, a pattern, hf:NAME or builtin:NAME")
        return path


class DataConfig(Section):
    """The text of a run."""

    sources: tuple[str | SourceConfig, ...] = ()
    """Sources of training text: paths, where `PATH@0.3` gives a weight, or `{path, weight, text_field, epochs,
    augment}`. Without weights every token is seen equally often. With `epochs` the sources are stages, read one after
    the other; where every source has its epochs and neither steps nor seconds are set, their end is that of the run."""
    dir: str | None = None
    """The folder in which relative paths of `sources` and `val` are looked up; by default the current one."""
    text_field: str | None = None
    """The field of a record that holds the text; by default `messages`, `prompt` and `completion`, `text` or
    `conversations`, the first that is there."""
    val: str | SourceConfig | None = None
    """A source that is held out whole. Without it the last `val_fraction` of each file is held out."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """The part of each file that is held out where `val` is not given, between 0 and 1: the last records, or the last
    characters of a plain text."""
    loss_on: Literal["all", "answers"] = "all"
    """`answers` scores only what the assistant says, and the end of its turn, in records of prompt and completion or of
    messages. Plain text has no answers and is scored whole either way."""
    chat_template: str | None = None
    """The text of a jinja2 template, or the path of a file that holds one. It gets `messages`, `add_generation_prompt`
    and `eos_token`. By default `User: ...` and `Assistant: ...`, one turn a line."""
    pack: Literal["stream", "documents"] = "stream"
    """`stream` joins all documents and cuts their tokens into windows. `documents` fills each window with whole
    documents, in a new order each epoch, and pads the rest, so that every window begins where a document begins."""
    end_marker: str | None = Field(default=None, min_length=1)
    """Characters such as `</s>` that mark the end of a record. They and the space before them are left out, since every
    record ends with `<|endoftext|>`."""
    augment: AugmentConfig = AugmentConfig()
    """Variation of training text, for small texts that are read many times; off by default."""
    cache_dir: str | None = None
    """Folder of the cache of tokenised text; by default `$ADAPTIVE_CACHE`, else `~/.cache/adaptive-lm`."""

    @model_validator(mode="after")
    def _stages_fit(self) -> "DataConfig":
        if not self.staged:
            return self
        for number, source in enumerate(self.sources, 1):
            path = source if isinstance(source, str) else source.path
            if isinstance(source, SourceConfig) and source.weight is not None:
                raise ValueError(f"{path} has a weight, but sources with epochs come one after the other; leave it out")
            if number < len(self.sources) and (isinstance(source, str) or source.epochs is None):
                raise ValueError(
                    f"{path} has no epochs, but other sources have; give every source its epochs (the last may go on "
                    "without end)"
                )
        return self

    @property
    def staged(self) -> bool:
        """Whether sources come one after the other."""
        return any(isinstance(source, SourceConfig) and source.epochs is not None for source in self.sources)

    @property
    def ends(self) -> bool:
        """Whether the epochs of the sources end the run: every source has them."""
        return bool(self.sources) and all(
            isinstance(source, SourceConfig) and source.epochs is not None for source in self.sources
        )


class TokenizerConfig(Section):
    """The tokenizer."""

    kind: str = "bpe"
    """`bpe` (byte-level, trained on the training text), `words` (words and punctuation), `chars`, `bytes`, or the path
    of an existing `tokenizer.json`."""
    vocab_size: int | None = Field(default=None, ge=1)
    """The largest vocabulary that `bpe` and `words` may grow, in tokens; 4096 by default. Other kinds take none."""
    train_bytes: int = Field(default=64 * 2**20, ge=1)
    """The most text, in bytes, that `bpe` and `words` are trained on; evenly spaced pieces of a larger training text.
    64 MiB by default."""

    @model_validator(mode="after")
    def _kind_exists(self) -> "TokenizerConfig":
        if self.kind not in TOKENIZER_KINDS and not self.is_file:
            near = difflib.get_close_matches(self.kind, TOKENIZER_KINDS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"tokenizer kind {self.kind!r} is not known; {hint}"
                f"Choose one of {', '.join(TOKENIZER_KINDS)} or the path of a tokenizer.json"
            )
        if self.vocab_size is not None and self.kind not in ("bpe", "words"):
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} has no effect with kind {self.kind!r}, whose size follows "
                "from the text; leave it out (it is for bpe and words)"
            )
        return self

    @property
    def is_file(self) -> bool:
        """Whether `kind` is the path of a tokenizer.json."""
        return self.kind.endswith(".json") or "/" in self.kind or "\\" in self.kind or Path(self.kind).is_file()

    @property
    def size_limit(self) -> int:
        """The largest vocabulary that bpe and words may grow."""
        return self.vocab_size or DEFAULT_VOCAB_SIZE
