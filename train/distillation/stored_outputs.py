"""Outputs of a teacher on disk: for each token of a text, the K most probable next tokens and the mass of the rest.

n tokens of a stream, K stored tokens, V tokens of the vocabulary.

An entry of the cache is `teachers/KEY/`: `part-00000.outputs` and so on, each with the outputs of `part_tokens` tokens,
and `about.json` for people. A part is written whole or not at all: 32 bytes of SHA-256 over all that follows, then the
arrays ids, log_probs, rest and loss. So whatever was computed before a stop is used again. KEY is the digest of all
that the outputs depend on. Entries may be deleted at any time; they are computed again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import UserError
from ...contract.files import cannot_write, write_whole
from ..system.cache_folder import digest_of

VERSION = 1
PART_TOKENS = 32768
"""About how many tokens a part has: few files, and little work lost when it is interrupted."""
DIGEST_BYTES = 32
LEAST_LOG = -6e4
"""Least logarithm that float16 holds."""


@dataclass(frozen=True)
class Kind:
    """All that stored outputs depend on besides the program."""

    tokens_sha256: str
    """Digest of the stream's tokens."""
    teacher_sha256: str
    count: int
    """K."""
    temperature: float
    window: int
    """Tokens that the teacher reads at once; it answers for the last half of them, after at least the first half."""
    vocabulary: int
    """V, of the student's tokenizer."""
    own_end: int | None
    """The id that only the student has; see `SharedIds`."""
    precision: str
    least_part: int = PART_TOKENS

    @property
    def key(self) -> str:
        """The name of the entry."""
        return digest_of([VERSION, asdict(self)])[:32]

    @property
    def stride(self) -> int:
        """Tokens that one window of the teacher answers for."""
        return max(self.window // 2, 1)

    @property
    def part_tokens(self) -> int:
        """Tokens of a part: `least_part` or a little more, a multiple of the stride."""
        return -(-self.least_part // self.stride) * self.stride

    def fields(self, tokens: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return the arrays of a part with this number of tokens: name -> shape and dtype, in order."""
        ids = "<u2" if self.vocabulary <= 2**16 else "<u4"
        by_token = (tokens, self.count)
        return {"ids": (by_token, ids), "log_probs": (by_token, "<f2"), "rest": ((tokens,), "<f2"),
                "loss": ((tokens,), "<f2")}  # fmt: skip

    def bytes_of(self, tokens: int) -> int:
        """Return the size of the outputs of this number of tokens."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.fields(tokens).values())


class Outputs(NamedTuple):
    """The outputs for n tokens, as numpy arrays; logarithms of probabilities at the temperature of the kind."""

    ids: NDArray[np.integer]  # (n, K), in order of probability
    log_probs: NDArray[np.floating]  # (n, K)
    rest: NDArray[np.floating]  # (n,)
    loss: NDArray[np.floating]  # (n,): -log probability of the next token of the text, at temperature 1


class StoredOutputs:
    """The outputs for one stream of tokens, in parts that are mapped into memory when they are first read."""

    def __init__(self, folder: Path, kind: Kind, tokens: int) -> None:
        """Name the entry; nothing is read or written yet.

        Args:
            folder: The folder of all entries.
            kind: What they depend on.
            tokens: n, tokens of the stream.
        """
        self.folder, self.kind, self.tokens = folder / kind.key, kind, tokens
        self._parts: dict[int, Outputs] = {}

    @property
    def bytes(self) -> int:
        """The size of all parts."""
        return sum(DIGEST_BYTES + self.kind.bytes_of(len(self.span(part))) for part in range(self.parts))

    @property
    def parts(self) -> int:
        """The number of parts."""
        return -(-self.tokens // self.kind.part_tokens)

    def span(self, part: int) -> range:
        """Return the tokens of a part."""
        first = part * self.kind.part_tokens
        return range(first, min(first + self.kind.part_tokens, self.tokens))

    def path(self, part: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{part:05d}.outputs"

    def missing(self) -> list[int]:
        """List the parts that are not there; one that is damaged is named on stderr, and counts as missing."""
        missing = []
        for part in range(self.parts):
            if part not in self._parts:
                try:
                    self._parts[part] = self._open(part)
                except FileNotFoundError:
                    missing.append(part)
                except (OSError, ValueError) as error:
                    print(f"{self.path(part)} is damaged ({error}); computing it again", file=sys.stderr)
                    missing.append(part)
        return missing

    def write(self, part: int, outputs: Outputs) -> None:
        """Write a part.

        Raises:
            UserError: The disk refuses.
        """
        tokens, arrays = len(self.span(part)), []
        for name, (shape, dtype) in self.kind.fields(tokens).items():
            values: NDArray[np.floating | np.integer] = getattr(outputs, name)
            assert values.shape == shape
            limited = values if name == "ids" else np.clip(values, LEAST_LOG, -LEAST_LOG)
            arrays.append(np.ascontiguousarray(limited.astype(dtype)).tobytes())
        content = b"".join(arrays)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            about = self.folder / "about.json"
            if not about.exists():
                write_whole(
                    about, json.dumps({"version": VERSION, "tokens": self.tokens, **asdict(self.kind)}, indent=1)
                )
            write_whole(self.path(part), hashlib.sha256(content).digest() + content)
        except OSError as error:
            keeps = "Parts that were written before are used again"
            raise cannot_write(self.path(part), error, keeps) from error

    def read(self, places: NDArray[np.int64]) -> Outputs:
        """Return the outputs at the places (m,) of the stream.

        Raises:
            UserError: A part that was there has been deleted or damaged since.
        """
        size = len(places)
        arrays = {name: np.zeros((size, *shape[1:]), dtype) for name, (shape, dtype) in self.kind.fields(1).items()}
        of_part = places // self.kind.part_tokens
        for part in np.unique(of_part).tolist():
            chosen = of_part == part
            outputs = self._part(part)
            local = places[chosen] - part * self.kind.part_tokens
            for name, array in arrays.items():
                array[chosen] = getattr(outputs, name)[local]
        return Outputs(**arrays)

    def _part(self, part: int) -> Outputs:
        if part not in self._parts:
            try:
                self._parts[part] = self._open(part)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{self.path(part)}, outputs of the teacher, cannot be read: {error}; resume the run, which "
                    "computes them again"
                ) from error
        return self._parts[part]

    def _open(self, part: int) -> Outputs:
        tokens, path = len(self.span(part)), self.path(part)
        size, expected = path.stat().st_size, DIGEST_BYTES + self.kind.bytes_of(tokens)
        if size != expected:
            raise ValueError(f"it has {size} bytes, expected {expected}")
        with path.open("rb") as file:
            digest = file.read(DIGEST_BYTES)
            if hashlib.file_digest(file, "sha256").digest() != digest:
                raise ValueError("its digest is not that of its content")
        arrays, offset = {}, DIGEST_BYTES
        for name, (shape, dtype) in self.kind.fields(tokens).items():
            arrays[name] = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
            offset += arrays[name].nbytes
        return Outputs(**arrays)


def digest_of_tokens(tokens: NDArray[np.integer]) -> str:
    """Return the sha256 of a stream, whatever type of integer holds its tokens."""
    digest = hashlib.sha256()
    for first in range(0, len(tokens), 2**20):
        digest.update(np.ascontiguousarray(tokens[first : first + 2**20], dtype="<u4").data)
    return digest.hexdigest()


def windows_of(span: range, kind: Kind, tokens: int) -> Iterator[tuple[int, range]]:
    """Yield (first token that the teacher reads, tokens that it answers for), for each window of a span."""
    window = min(kind.window, tokens)
    for first in range(span.start, span.stop, kind.stride):
        answered = range(first, min(first + kind.stride, span.stop))
        yield max(answered.stop - window, 0), answered


def joined(parts: Iterable[Outputs]) -> Outputs:
    """Put outputs behind each other."""
    return Outputs(*(np.concatenate(each) for each in zip(*parts, strict=True)))
