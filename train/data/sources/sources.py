"""Resolve a value of `--data` to its files."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ....contract.errors import UserError
from ....contract.files import user_path
from ..augment.config import AugmentConfig
from ..builtin import BUILTINS
from ..config import DataConfig, SourceConfig
from .files import Kind, find_files, kind_of, missing

Log = Callable[[str], None]


@dataclass(frozen=True)
class Item:
    """One file, or one data set without a file: read, counted, digested and split as a unit."""

    name: str
    """For messages."""
    kind: Kind
    """The kind of file, which chooses its reader."""
    path: Path | None
    """The file; None for a data set without one."""
    text_field: str | None
    """The field of a record that holds the text; None to look for the usual ones."""
    chosen: bool
    """Whether it is named directly, so that an empty one is an error and not only skipped."""
    end_marker: str | None = None
    """Characters that end a record and are left out."""


@dataclass(frozen=True)
class Source:
    """The items of one `--data`."""

    name: str
    """The source as typed, without the weight."""
    weight: float | None
    """Its share of the training windows, if one is given."""
    items: tuple[Item, ...]
    """Its files in order."""
    epochs: int | None = None
    """Epochs before the next source begins, if they are given."""
    augment: AugmentConfig | None = None
    """Its variation; None takes that of the section."""


def resolve_sources(
    config: DataConfig, log: Log, sources: Sequence[str | SourceConfig] | None = None
) -> tuple[Source, ...]:
    """Resolve the training sources in the order given: those of the section, or `sources`, those of a task.

    Raises:
        UserError: there is no source, or a source cannot be found.
    """
    sources = config.sources if sources is None else sources
    if not sources:
        raise UserError(
            "no data given; expected at least one source: --data FILE, --data hf:NAME or --data builtin:facts"
        )
    options = (config.text_field, log, config.dir, config.end_marker)
    return tuple(resolve_source(source, *options) for source in sources)


def resolve_source(
    source: str | SourceConfig,
    text_field: str | None,
    log: Log,
    folder: str | None = None,
    end_marker: str | None = None,
) -> Source:
    """Parse one source, look it up and list its files.

    Args:
        source: As typed, or as a config has it.
        text_field: The field of the section, where the source names none of its own.
        log: Called with a message about files that are left out.
        folder: Where relative paths are looked up; None for the current folder.
        end_marker: Characters that end a record and are left out.

    Raises:
        UserError: the source cannot be found or cannot be trained on.
    """
    if isinstance(source, str):
        source = parse_source(source, folder)
    spec, field = source.path, source.text_field or text_field
    if spec.startswith("builtin:"):
        name = spec.removeprefix("builtin:")
        if name not in BUILTINS:
            raise UserError(missing(f"there is no built-in text {spec!r}", name, BUILTINS, prefix="builtin:"))
        items: Sequence[Item] = [Item(spec, "builtin", None, field, chosen=True)]
    elif spec.startswith("hf:"):
        if not hf_name(spec)[0]:
            raise UserError(f"cannot read {spec!r}; expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT")
        items = [Item(spec, "hf", None, field, chosen=True)]
    else:
        path = _placed(spec, folder)
        try:
            files = find_files(spec, path, log)
        except UserError as error:
            if folder is None or user_path(spec).is_absolute():
                raise
            raise UserError(f"{error}; the folder of {spec} is named by --data-dir, which is {folder!r}") from None
        chosen = files == [path]
        items = [Item(str(one), kind_of(one) or "text", one, field, chosen=chosen) for one in files]
    items = [replace(item, end_marker=end_marker) for item in items]
    return Source(spec, source.weight, tuple(items), source.epochs, source.augment)


def _placed(spec: str, folder: str | None) -> Path:
    path = user_path(spec)
    return path if folder is None or path.is_absolute() else user_path(folder) / path


def parse_source(text: str, folder: str | None = None) -> SourceConfig:
    """Parse `PATH` or `PATH@WEIGHT`; a path that exists as written is never cut.

    Raises:
        UserError: the text is empty, or the weight is no number above 0.
    """
    if not text.strip():
        raise UserError("an empty --data; expected a file, a folder, a pattern, hf:NAME or builtin:NAME")
    path, at, tail = text.rpartition("@")
    if not at or not path or _placed(text, folder).exists():
        return SourceConfig(path=text)
    try:
        weight = float(tail)
    except ValueError:
        return SourceConfig(path=text)  # an "@" in the name
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"the weight of {text!r} is {tail}; expected a number above 0, as in {path}@0.3")
    return SourceConfig(path=path, weight=weight)


def hf_name(spec: str) -> tuple[str, str, str]:
    """Split `hf:NAME:CONFIG:SPLIT`; "" for what is not given. A split may be `train[:100]`."""
    name, config, split = [*spec.split(":", maxsplit=3)[1:], "", ""][:3]
    return name, config, split
