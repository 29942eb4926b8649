"""What to read and how to cut it into tokens: the `data:` and `tokenizer:` sections of a run's config."""

import difflib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .augment.config import AugmentConfig

TOKENIZER_KINDS = ("bpe", "words", "chars", "bytes")
DEFAULT_VOCAB_SIZE = 4096


class SourceConfig(BaseModel):
    """One source of text: a file, folder, glob, `hf:NAME[:CONFIG[:SPLIT]]` or `builtin:NAME`.

    `weight` is this source's share of the training windows; `text_field` overrides the section's for this source.
    `epochs`: sources come one after the other, each read so many times. `augment` stands in place of the section's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1)
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    text_field: str | None = None
    epochs: int | None = Field(default=None, ge=1)
    augment: AugmentConfig | None = None


class DataConfig(BaseModel):
    """The text of a run.

    - `sources`: paths (`PATH@0.3` gives a weight) or `{path, weight, text_field, epochs}`. Without weights every token
      is seen equally often; sources without a weight share what the others leave. With `epochs` the sources are stages:
      the first is read so many times, then the next; the last goes on for as long as the run does, and where neither
      steps nor seconds are set, its epochs end the run.
    - `dir`: the folder in which relative paths of sources and of `val` are looked up; by default the current one.
    - `text_field`: the field of a record that holds the text; by default `messages`, `prompt` + `completion` or `text`.
    - `val`: a source held out whole. Without it the last `val_fraction` of each file is held out: the last records, or
      the last characters of a plain text.
    - `loss_on`: "answers" scores only what the assistant says (and the end of its turn) in records of prompt/completion
      or messages; plain text, which has no answers, is scored whole either way.
    - `chat_template`: jinja2 text, or the path of a file that holds it; it sees `messages`, `add_generation_prompt` and
      `eos_token`.
    - `pack`: "stream" cuts the tokens of all documents, end to end, into windows; "documents" fills each window with
      whole documents in a new order each epoch and pads the rest, so that every window starts where a document starts.
    - `end_marker`: characters such as `</s>` that a record may end in and that mean the end of the text; they and the
      space before them are left out, since every record is ended by `<|endoftext|>`.
    - `augment`: how training text is varied, for small texts that are read many times; off by default.
    - `cache_dir`: where tokenised text is kept; by default `$ADAPTIVE_CACHE`, else `~/.cache/adaptive-lm`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str | SourceConfig, ...] = ()
    dir: str | None = None
    text_field: str | None = None
    val: str | SourceConfig | None = None
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    loss_on: Literal["all", "answers"] = "all"
    chat_template: str | None = None
    pack: Literal["stream", "documents"] = "stream"
    end_marker: str | None = Field(default=None, min_length=1)
    augment: AugmentConfig = AugmentConfig()
    cache_dir: str | None = None

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
        """Whether the text itself says when a run is over: every source has its epochs."""
        return bool(self.sources) and all(
            isinstance(source, SourceConfig) and source.epochs is not None for source in self.sources
        )


class TokenizerConfig(BaseModel):
    """How text becomes tokens.

    `kind` is "bpe" (byte-level, trained on the training text), "words" (words and punctuation), "chars", "bytes", or
    the path of an existing `tokenizer.json`. `vocab_size` bounds the vocabulary of bpe and words (4096 when not given).
    `train_bytes` bounds the text that bpe and words are trained on: evenly spaced pieces of the training text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = "bpe"
    vocab_size: int | None = Field(default=None, ge=1)
    train_bytes: int = Field(default=64 * 2**20, ge=1)

    @model_validator(mode="after")
    def _known(self) -> "TokenizerConfig":
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
                "from "
                "the text; leave it out (it is for bpe and words)"
            )
        return self

    @property
    def is_file(self) -> bool:
        """True when `kind` is the path of a tokenizer.json."""
        return self.kind.endswith(".json") or "/" in self.kind or "\\" in self.kind or Path(self.kind).is_file()

    @property
    def size_limit(self) -> int:
        """The largest vocabulary that bpe and words may grow."""
        return self.vocab_size or DEFAULT_VOCAB_SIZE
