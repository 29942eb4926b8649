"""The text of a run and its tokenizer: the `data:` and `tokenizer:` sections of the config."""

import difflib
from collections.abc import Sequence
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


class TaskConfig(Section):
    """One task of a run: a part of its text that has its own weight, held-out text and measurements."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Its name in metrics.jsonl and in tables, such as `code`: letters, digits, `.`, `_` and `-`."""
    sources: tuple[str | SourceConfig, ...]
    """Its training text, as in `data.sources`; a weight is a share of the windows of this task."""
    val: str | SourceConfig | None = None
    """A source that is held out whole. Without it the last `data.val_fraction` of each of its files is held out."""
    loss_weight: float = Field(default=1.0, ge=0)
    """Factor on the cross-entropy of its tokens, 0 or more. Auxiliary losses of the routers have none."""
    loss_on: Literal["all", "answers"] | None = None
    """Tokens that are trained on, instead of `data.loss_on`."""
    share: float | None = Field(default=None, ge=0)
    """Its share of the training windows, 0 or more; 0 only measures it. Tasks without a share divide what the others
    leave, by `data.sampling`."""
    token: str | None = Field(default=None, pattern=r"^[^\s{}]+$")
    """A token such as `<|code|>` that begins each of its texts, and each window that begins inside a text. It is added
    to the vocabulary and never scored; a prompt that begins with it asks for this task."""

    @field_validator("sources")
    @classmethod
    def _has_text(cls, sources: tuple[str | SourceConfig, ...]) -> tuple[str | SourceConfig, ...]:
        if not sources:
            raise ValueError("a task without text; expected at least one source, as in sources: [code.txt]")
        return sources


class SamplingConfig(Section):
    """How the training windows are divided among the tasks that have no share of their own."""

    by: Literal["temperature", "progress"] = "temperature"
    """`temperature`: fixed shares, each in proportion to n^(1/temperature), where n is the number of training tokens of
    the task (mT5, arXiv 2010.11934, section 3.2, with alpha = 1/temperature). `progress`: shares that follow the slope
    of each task's training loss (teacher-student curriculum learning, Matiisen et al. 2017, arXiv 1707.00183)."""
    temperature: float = Field(default=1.0, ge=1)
    """1 gives every token the same chance, a large number gives every task the same share; at least 1."""
    floor: float = Field(default=0.2, gt=0, le=1)
    """With `progress`: part of the windows that is divided by temperature, whatever the slopes are. So a task has at
    least this part of its share by temperature. More than 0, at most 1."""
    every: int = Field(default=20, ge=1, lt=2**31)
    """With `progress`: steps over which a loss is averaged, and after which shares change; 1 or more."""
    window: int = Field(default=5, ge=2, le=1000)
    """With `progress`: the number of averages through which the slope is fitted, 2 to 1,000."""


class DataConfig(Section):
    """The text of a run."""

    sources: tuple[str | SourceConfig, ...] = ()
    """Sources of training text: paths, where `PATH@0.3` gives a weight, or `{path, weight, text_field, epochs,
    augment}`. Without weights every token is seen equally often. With `epochs` the sources are stages, read one after
    the other; where every source has its epochs and neither steps nor seconds are set, their end is that of the run."""
    tasks: tuple[TaskConfig, ...] = ()
    """Several tasks in one run, instead of `sources` and `val`: [{name: code, sources: [src]}, {name: prose, sources:
    [docs], loss_weight: 0.5}]. Each is measured on its own."""
    sampling: SamplingConfig = SamplingConfig()
    """How training windows are divided among `tasks`."""
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

    @model_validator(mode="after")
    def _tasks_fit(self) -> "DataConfig":
        tasks = self.tasks
        if not tasks:
            if self.sampling != SamplingConfig():
                raise ValueError(
                    "sampling divides windows among tasks, but there are none; give data.tasks, or leave it out"
                )
            return self
        for name, value in (("sources", self.sources), ("val", self.val)):
            if value:
                raise ValueError(
                    f"{name} and tasks are both given; write {name} in each task, and leave data.{name} out"
                )
        refuse_twice("name", [task.name for task in tasks])
        refuse_twice("token", [task.token for task in tasks if task.token is not None])
        for task in tasks:
            if any(isinstance(source, SourceConfig) and source.epochs is not None for source in task.sources):
                raise ValueError(
                    f"a source of the task {task.name} has epochs, but tasks are mixed in every batch; leave epochs "
                    "out, or give stages in data.sources and no tasks"
                )
        if not any(task.loss_weight for task in tasks):
            raise ValueError("the loss weights of the tasks are all 0, so nothing is learned; give one of them more")
        shares = [task.share for task in tasks]
        if all(share is not None for share in shares) and not any(shares):
            raise ValueError("the shares of the tasks are all 0, so there is no training text; give one of them more")
        if self.sampling.by == "progress":
            if len(tasks) < 2:
                raise ValueError("sampling by progress needs at least two tasks; give another, or leave sampling out")
            given = [task.name for task in tasks if task.share is not None]
            if given:
                raise ValueError(
                    f"the task {given[0]} has a share, but sampling by progress sets the shares of all tasks; leave "
                    "the share out, or set sampling.by to temperature"
                )
        return self

    @property
    def each_task(self) -> tuple[TaskConfig, ...]:
        """The tasks; where there are none, one without a name that has all sources."""
        if self.tasks:
            return self.tasks
        return (TaskConfig.model_construct(name="", sources=self.sources, val=self.val),)

    @property
    def paths(self) -> list[str]:
        """The paths of all sources, those of held-out text included."""
        tasks = self.each_task
        sources = [source for task in tasks for source in task.sources]
        sources += [task.val for task in tasks if task.val is not None]
        return [source if isinstance(source, str) else source.path for source in sources]

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


def refuse_twice(what: str, values: Sequence[str]) -> None:
    """Raise ValueError if two tasks have the same value."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"two tasks have the {what} {value!r}; give each its own")


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
