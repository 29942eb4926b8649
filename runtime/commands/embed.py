"""The command `adaptive embed`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ...contract.errors import UserError, WrongUsageError
from .options.common import ExpandedPath, dial_options, model_options, option_names
from .output import warn
from .prompt import encode
from .prompt_file import PromptLine, read_prompts

if TYPE_CHECKING:
    from ..dial import Dial
    from ..generation.engine import Engine

AT_A_TIME = 64
"""Texts that are computed before their vectors are printed."""


@click.command(epilog='\b\nExample: adaptive embed "How do mountains form?" --json')
@click.argument("text", required=False)
@click.option("--texts", type=ExpandedPath(), metavar="FILE",
              help="Embed every text of FILE in place of TEXT: one a line, or JSON lines with `prompt`; `-` reads "
                   "stdin.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with `embedding` and `tokens`.")
@dial_options
@model_options
@click.pass_context
def embed(
    ctx: click.Context, /, text: str | None, texts: str | None, as_json: bool, model: str | None, device: str,
    target: str, threads: int | None, verify: bool, **dial: float | None,
) -> None:  # fmt: skip
    """Print the embedding of TEXT: the mean of its tokens' hidden states after the last layer.

    It is a line of numbers, as many as the model is wide. The model has to be exported with `adaptive export --onnx
    --embeddings`. With --texts the lines come in the order of FILE; a text that fails is named on stderr, has an empty
    line, or with --json an object with `error`, and the others go on.
    """
    if (text is None) == (texts is None):
        count = "none" if text is None else "both"
        raise WrongUsageError(f"found {count} of TEXT and --texts FILE, expected one of them; give one")
    from ..dial import Dial, resolve

    with option_names():
        settings = Dial(**dial)
    lines = [PromptLine(1, text or "")] if texts is None else read_prompts(texts)
    from ..format.locate import find_model
    from ..generation.engine import load
    from ..generation.request import require_hidden_states

    engine = load(find_model(model), device=device, target=target, threads=threads, verify=verify)
    require_hidden_states(engine.manifest)
    resolve(engine.manifest, settings)  # a dial that the model does not have is no fault of a text
    warn(engine, settings)
    failed = 0
    for begin in range(0, len(lines), AT_A_TIME):
        failed += print_some(engine, lines[begin : begin + AT_A_TIME], settings, as_json=as_json, alone=texts is None)
    ctx.exit(int(failed > 0))


def print_some(engine: Engine, lines: list[PromptLine], dial: Dial, *, as_json: bool, alone: bool) -> int:
    """Print the vectors of some texts, in their order; return how many failed.

    Raises:
        UserError: The only text failed.
    """
    ids: dict[int, list[int]] = {}
    errors: dict[int, UserError] = {}
    for line in lines:
        try:
            ids[line.line] = encode_line(engine, line)
        except UserError as error:
            if alone:
                raise
            errors[line.line] = error
    vectors = dict(zip(ids, engine.embed(list(ids.values()), dial), strict=True))
    for line in lines:
        if line.line in errors:
            click.echo(f"Error: line {line.line}: {errors[line.line]}", err=True)
            click.echo(json.dumps({"line": line.line, "error": str(errors[line.line])}) if as_json else "")
        elif as_json:
            numbers = vectors[line.line].tolist()
            click.echo(json.dumps({"embedding": numbers, "tokens": len(ids[line.line])}))
        else:
            click.echo(" ".join(map(str, vectors[line.line])))
    return len(errors)


def encode_line(engine: Engine, line: PromptLine) -> list[int]:
    """Return the ids of a text.

    Raises:
        UserError: The line is no text, has settings, or cannot be embedded.
    """
    from ..generation.request import require_embeddable

    if line.error is not None:
        raise line.error
    if line.settings:
        raise UserError(f"found the setting {next(iter(line.settings))!r}, expected only `prompt`; leave it out")
    ids = encode(engine, line.text, is_chat=False, where=f"line {line.line}: ")
    require_embeddable(engine.manifest, ids)
    return ids
