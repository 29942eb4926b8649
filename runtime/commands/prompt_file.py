"""The prompts of a file: one a line, or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...contract.errors import UserError
from ...contract.streams import read_stdin
from ...contract.text.compression import file_bytes
from ...contract.text.file import decode

if TYPE_CHECKING:
    from ..generation.sampling.params import Params


@dataclass(frozen=True)
class PromptLine:
    """One prompt of a file."""

    line: int
    """Its line, from 1."""
    text: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of its own, by the names of `Params`."""
    error: UserError | None = None
    """Why the line is no prompt."""

    def params(self, base: Params) -> Params:
        """Return the settings of this prompt: those of `base` where it has none of its own.

        Raises:
            UserError: A setting is unknown or has a value that it cannot have.
        """
        from dataclasses import fields, replace

        from ..generation.sampling.sampler import biases_of
        from ..generation.text.stop import stops_of

        names = {one.name for one in fields(base)}
        unknown = [name for name in self.settings if name not in names]
        if unknown:
            raise UserError(f"found the setting {unknown[0]!r}, expected prompt or one of {', '.join(sorted(names))}")
        own = dict(self.settings)
        if "stop" in own:
            stop = own["stop"]
            own["stop"] = stops_of(stop if isinstance(stop, str | list | None) else [stop])
        if isinstance(biases := own.get("logit_bias"), dict):
            own["logit_bias"] = biases_of(biases)
        try:
            return replace(base, **own)
        except TypeError as error:  # a text in place of a number
            raise UserError(f"found {json.dumps(self.settings)}, expected numbers: {error}") from error


def read_prompts(file: str) -> list[PromptLine]:
    """Read the prompts of a file, or of stdin if it is `-`.

    A file whose first line is a JSON object with `prompt` holds JSON lines; every other holds one prompt a line. A line
    that is no prompt becomes one with an error.

    Raises:
        UserError: The file cannot be read, or holds no line.
    """
    name = "stdin" if file == "-" else file
    data = read_stdin() if file == "-" else b"".join(file_bytes(Path(file)))
    lines = list(_decoded(data, name))
    if not lines:
        raise UserError(f"found no line in {name}, expected one prompt a line; write one into it")
    first = next((line for line in lines if isinstance(line, str)), "")
    as_json = _json_prompt(first) is not None
    return [_prompt(number, line, as_json) for number, line in enumerate(lines, 1)]


def _decoded(data: bytes, name: str) -> Iterator[str | UserError]:
    """Yield each line as text; if the file is not text, the lines that are none as errors."""
    try:
        text = decode(data, name)
    except UserError:
        pieces = data.removesuffix(b"\n").split(b"\n")
        for number, piece in enumerate(pieces, 1):
            try:
                yield decode(piece, f"line {number}").removesuffix("\r")
            except UserError as error:
                yield error
    else:
        if text:
            yield from (line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))


def _json_prompt(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("prompt"), str) else None


def _prompt(number: int, line: str | UserError, as_json: bool) -> PromptLine:
    if isinstance(line, UserError):
        return PromptLine(number, error=line)
    if not as_json:
        return PromptLine(number, line)
    content = _json_prompt(line)
    if content is None:
        shown = line if len(line) <= 60 else line[:57] + "..."
        error = UserError(f"found {shown!r}, expected a JSON object with the text `prompt`, as on the first line")
        return PromptLine(number, error=error)
    return PromptLine(number, content.pop("prompt"), content)
