"""From what stands after `--data` to the files behind it."""

import difflib
import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...contract.errors import UserError
from .augment.config import AugmentConfig
from .builtin import BUILTINS
from .config import DataConfig, SourceConfig

Kind = Literal["text", "jsonl", "json", "csv", "parquet", "hf", "builtin"]
EXTENSIONS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Item:
    """One file, or one data set without a file: what is read, counted, digested and split as a unit."""

    name: str  # for messages
    kind: Kind
    path: Path | None
    text_field: str | None
    chosen: bool  # named directly, so that an empty one is an error and not only skipped
    end_marker: str | None = None  # what a record may end in that means its end


@dataclass(frozen=True)
class Source:
    """What one `--data` names."""

    name: str
    weight: float | None
    items: tuple[Item, ...]
    epochs: int | None = None
    augment: AugmentConfig | None = None  # None: as the section says


def resolve_sources(config: DataConfig, say: Say) -> tuple[Source, ...]:
    """The training sources in the order given. Raises UserError for everything that cannot be found."""
    if not config.sources:
        raise UserError(
            "no data given; expected at least one source: --data FILE, --data hf:NAME or --data builtin:facts"
        )
    options = (config.text_field, say, config.dir, config.end_marker)
    return tuple(resolve_source(source, *options) for source in config.sources)


def resolve_source(
    source: str | SourceConfig,
    text_field: str | None,
    say: Say,
    folder: str | None = None,
    end_marker: str | None = None,
) -> Source:
    """One source: parsed, looked up (a relative path in `folder`) and listed. Raises UserError."""
    if isinstance(source, str):
        source = parse_source(source, folder)
    spec, field = source.path, source.text_field or text_field
    if spec.startswith("builtin:"):
        name = spec.removeprefix("builtin:")
        if name not in BUILTINS:
            raise UserError(_unknown(f"there is no built-in text {spec!r}", name, BUILTINS, prefix="builtin:"))
        items: Sequence[Item] = [Item(spec, "builtin", None, field, chosen=True)]
    elif spec.startswith("hf:"):
        if not hf_name(spec)[0]:
            raise UserError(f"cannot read {spec!r}; expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT")
        items = [Item(spec, "hf", None, field, chosen=True)]
    else:
        try:
            items = _files(_placed(spec, folder), field, say)
        except UserError as error:
            if folder is None or Path(spec).is_absolute():
                raise
            raise UserError(f"{error}; the folder of {spec} is named by --data-dir, which is {folder!r}") from None
    items = [replace(item, end_marker=end_marker) for item in items]
    return Source(spec, source.weight, tuple(items), source.epochs, source.augment)


def _placed(spec: str, folder: str | None) -> str:
    path = Path(spec).expanduser()
    return spec if folder is None or path.is_absolute() else str(Path(folder).expanduser() / path)


def parse_source(text: str, folder: str | None = None) -> SourceConfig:
    """`PATH` or `PATH@WEIGHT`; a path that exists as written is never cut. Raises UserError for a bad weight."""
    if not text.strip():
        raise UserError("an empty --data; expected a file, a folder, a pattern, hf:NAME or builtin:NAME")
    path, at, tail = text.rpartition("@")
    if not at or not path or Path(_placed(text, folder)).exists():
        return SourceConfig(path=text)
    try:
        weight = float(tail)
    except ValueError:
        return SourceConfig(path=text)  # an "@" in the name
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"the weight of {text!r} is {tail}; expected a number above 0, as in {path}@0.3")
    return SourceConfig(path=path, weight=weight)


def hf_name(spec: str) -> tuple[str, str, str]:
    """Name, config and split of `hf:NAME:CONFIG:SPLIT`, "" where not given; a split may be `train[:100]`."""
    name, config, split = [*spec.split(":", maxsplit=3)[1:], "", ""][:3]
    return name, config, split


def _files(spec: str, field: str | None, say: Say) -> list[Item]:
    path = Path(spec).expanduser()
    if path.is_file():
        kind = EXTENSIONS.get(path.suffix.lower())
        if kind is None:
            raise UserError(
                f"{spec} has the extension {path.suffix or '(none)'!r}, which is not known; expected one of "
                f"{', '.join(EXTENSIONS)}. If it is plain text, rename it to {path.stem}.txt"
            )
        return [Item(str(path), kind, path, field, chosen=True)]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        place = f"the folder {spec}"
    elif glob.has_magic(spec):
        # Not Path.glob, which refuses absolute patterns.
        matches = [Path(p) for p in glob.glob(str(path), recursive=True)]  # noqa: PTH207
        found = sorted(p for p in matches if p.is_file())
        place = f"the pattern {spec}"
        if not found:
            raise UserError(
                f"{place} matches no file (looked from {Path.cwd()}); quote it so that the shell leaves it alone, or "
                "widen it"
            )
    else:
        raise UserError(_missing(spec, path))
    known = [p for p in found if p.suffix.lower() in EXTENSIONS]
    if not known:
        others = sorted({p.suffix or p.name for p in found})[:8]
        raise UserError(
            f"{place} holds no text: found {', '.join(others) if others else 'no files'}, expected "
            f"{', '.join(EXTENSIONS)}"
        )
    if len(known) < len(found):
        say(f"{place}: {len(known)} files read, {len(found) - len(known)} of other kinds left out")
    return [Item(str(p), EXTENSIONS[p.suffix.lower()], p, field, chosen=False) for p in known]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _missing(spec: str, path: Path) -> str:
    if not path.parent.is_dir():
        return f"{spec} does not exist, nor does its folder {path.parent} (looked from {Path.cwd()}); check the path"
    names = [p.name + ("/" if p.is_dir() else "") for p in path.parent.iterdir() if not p.name.startswith(".")]
    if spec in BUILTINS:
        return f"{spec} does not exist as a file; the built-in text is builtin:{spec}"
    return _unknown(f"{spec} does not exist (looked in {path.parent.resolve()})", path.name, names)


def _unknown(found: str, name: str, known: Sequence[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"{found}; did you mean {prefix}{near[0]}?"
    listed = ", ".join(prefix + k for k in sorted(known)[:10])
    return f"{found}; there is {listed or 'nothing there'}"
