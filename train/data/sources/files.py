"""The files of a path, a folder or a pattern, and the reader of each."""

import difflib
import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from ....contract.errors import UserError
from ....contract.text.compression import file_bytes, without_compression
from ....contract.text.diagnosis import looks_binary
from ..builtin import BUILTINS

Kind = Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "hf", "builtin"]
EXTENSIONS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""Extensions read from a folder, also compressed (.gz, .bz2, .xz, .zst). Any other file, if named, is read as text."""

_SNIFFED_BYTES = 2**13
_LISTED = 3


def kind_of(path: Path) -> Kind | None:
    """Choose how a file is read by its extension, without that of its compression; None for an extension of no kind."""
    kind = EXTENSIONS.get(path.suffix.lower())
    if kind is None and (inner := without_compression(path)) != path:
        kind = EXTENSIONS.get(inner.suffix.lower())
        return None if kind == "parquet" else kind  # which compresses by itself
    return kind


def find_files(spec: str, path: Path, log: Callable[[str], None]) -> list[Path]:
    """List the files of a source.

    Args:
        spec: The source as typed.
        path: The same, looked up.
        log: Called with a message about files that are left out.

    Raises:
        UserError: there is no such file, or it cannot be read several times.
    """
    if path.is_file():
        return [path]
    if spec == "-" or (path.exists() and not path.is_dir()):
        raise UserError(
            f"{spec} is a pipe, a terminal or a device; expected a file, because --data is read several times. Save it "
            "to a file first, as in: COMMAND > data.txt, then --data data.txt"
        )
    if path.is_dir():
        return _of_folder(spec, path, log)
    if glob.has_magic(spec):
        return _of_pattern(spec, path, log)
    raise UserError(_missing_file(spec, path))


def _of_folder(spec: str, path: Path, log: Callable[[str], None]) -> list[Path]:
    folder = _snapshot(path)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not _hidden(p.relative_to(folder)))
    texts = [p for p in files if kind_of(p)]
    if not texts:
        others = sorted({p.suffix or p.name for p in files})[:8]
        raise UserError(
            f"the folder {spec} holds no text: found {', '.join(others) if others else 'no files'}, expected "
            f"{', '.join(EXTENSIONS)}. Other text, such as code, is taken where a pattern names it: "
            f"--data '{path / '**' / '*.py'}'"
        )
    if len(texts) < len(files):
        log(f"the folder {spec}: {len(texts)} files read, {len(files) - len(texts)} of other kinds left out")
    return texts


def _of_pattern(spec: str, path: Path, log: Callable[[str], None]) -> list[Path]:
    # Not Path.glob, which refuses absolute patterns.
    matches = [Path(p) for p in glob.glob(str(path), recursive=True)]  # noqa: PTH207
    files = sorted({p for p in matches if p.is_file()})
    if not files:
        raise UserError(
            f"the pattern {spec} matches no file (looked from {Path.cwd()}); quote it so that the shell leaves it "
            "alone, or widen it"
        )
    texts = [p for p in files if kind_of(p) or not _is_binary(p)]
    if not texts:
        raise UserError(f"the pattern {spec} matches binary files alone ({_listed(files)}); expected text")
    binary = [p for p in files if p not in set(texts)]
    if binary:
        log(f"the pattern {spec}: {len(texts)} files read, {len(binary)} binary left out ({_listed(binary)})")
    return texts


def _is_binary(path: Path) -> bool:
    return looks_binary(next(file_bytes(path), b"")[:_SNIFFED_BYTES])


def _listed(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files[:_LISTED])) + (" and others" if len(files) > _LISTED else "")


def _snapshot(path: Path) -> Path:
    """Return the current snapshot of a data set in the cache of the Hugging Face hub; any other folder as it is."""
    snapshots = path / "snapshots"
    if not (snapshots.is_dir() and (path / "blobs").is_dir()):
        return path
    reference = path / "refs" / "main"
    if reference.is_file() and (current := snapshots / reference.read_text(encoding="utf-8").strip()).is_dir():
        return current
    revisions = sorted(p for p in snapshots.iterdir() if p.is_dir())
    if len(revisions) == 1:
        return revisions[0]
    raise UserError(
        f"{path} is a cache of the Hugging Face hub with {len(revisions)} snapshots; choose one: "
        f"--data {revisions[0] if revisions else snapshots / 'REVISION'}"
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _missing_file(spec: str, path: Path) -> str:
    if path.is_symlink():
        return f"{spec} is a symbolic link to {path.readlink()}, which does not exist; fetch the file it points to"
    if not path.parent.is_dir():
        return f"{spec} does not exist, nor does its folder {path.parent} (looked from {Path.cwd()}); check the path"
    names = [p.name + ("/" if p.is_dir() else "") for p in path.parent.iterdir() if not p.name.startswith(".")]
    if spec in BUILTINS:
        return f"{spec} does not exist as a file; the built-in text is builtin:{spec}"
    return missing(f"{spec} does not exist (looked in {path.parent.resolve()})", path.name, names)


def missing(problem: str, name: str, names: Sequence[str], prefix: str = "") -> str:
    """End `problem` with the nearest of `names`, or with the first of them."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"{problem}; did you mean {prefix}{near[0]}?"
    listed = ", ".join(prefix + one for one in sorted(names)[:10])
    return f"{problem}; there is {listed or 'nothing there'}"
