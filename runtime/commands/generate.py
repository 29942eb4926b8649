"""The command `adaptive generate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...contract.errors import WrongUsageError
from .generate_many import generate_many
from .generate_one import generate_one
from .options.common import ExpandedPath, dial_options, model_options, option_names
from .options.constraints import compile_constraint, constraint_options, read_constraint
from .options.sampling import model_defaults, sampling_options, typed
from .options.tools import ToolCalls, read_tools, tool_options
from .output import warn
from .prompt import read_prompt
from .prompt_file import read_prompts
from .search import search_many, search_one, search_options

if TYPE_CHECKING:
    from ...contract.generation_settings import ToolFormat


@click.command(epilog='\b\nExample: adaptive generate "How do mountains form?" --temperature 0 --usage tokens')
@click.argument("prompt", required=False)
@click.option("--prompts", type=ExpandedPath(), metavar="FILE",
              help="Continue every prompt of FILE in place of PROMPT: one a line, or JSON lines with `prompt` and "
                   "settings such as `max_new_tokens`; `-` reads stdin.")  # fmt: skip
@click.option(
    "--batch", type=int, metavar="N", help="Prompts of --prompts to compute at a time, at least 1; by default 8."
)
@sampling_options
@click.option(
    "--chat/--raw",
    "chat",
    default=None,
    help="Put the prompt into the chat template, or not; by default if the model was trained on conversations.",
)
@click.option(
    "--template",
    metavar="NAME",
    help="Chat template to use, of a model that has several; by default its main one, or with --tools that for tools.",
)
@click.option(
    "--speculate",
    type=click.Choice(["ngram", "dial", "off"]),
    help="How to guess tokens ahead, which changes the time and not the text: `ngram` by what followed the same words "
    "before, `dial` by the model at a lower setting; by default ngram on the target cpu, else off.",
)
@click.option(
    "--beams",
    type=int,
    metavar="N",
    help="Search for the most probable text with a beam of at most N texts, at least 1, in place of drawing one.",
)
@click.option(
    "--beam-margin",
    type=float,
    metavar="NATS",
    help="Drop beams whose log-probability is more than this below the best one's, at least 0; by default none.",
)
@click.option(
    "--length-penalty",
    type=float,
    metavar="POWER",
    help="How much --beams favours longer texts, 0 to 10; by default 0.6.",
)
@click.option(
    "--best-of",
    type=int,
    metavar="N",
    help="Draw N texts, at least 1, and take the one with the highest mean log-probability.",
)
@click.option("--usage", type=click.Choice(["none", "summary", "tokens"]), default="summary", show_default=True,
              help="What to report about the compute, on stderr.")  # fmt: skip
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, with the usage of each token, at the end."
)
@click.option(
    "--logprobs",
    type=int,
    metavar="N",
    help="With --json: report the log-probability of each token and of the N most probable ones, 0 to 20.",
)
@constraint_options
@tool_options
@dial_options
@model_options
@click.pass_context
def generate(
    ctx: click.Context, /, prompt: str | None, prompts: str | None, batch: int | None, model: str | None,
    chat: bool | None, beams: int | None, beam_margin: float | None, length_penalty: float | None, best_of: int | None,
    usage: str, as_json: bool, json_schema: str | None, regex: str | None, grammar: str | None, tools: str | None,
    tool_format: ToolFormat | None, template: str | None,
    device: str, target: str, threads: int | None, verify: bool, **params: Any,
) -> None:  # fmt: skip
    """Continue PROMPT with an exported model, or answer it as a chat; `-` reads the prompt from stdin.

    The text goes to stdout as it is generated, its cost to stderr. `--usage tokens` also colours the text by compute
    and shows a table with the experts, layers, share of the dense FLOPs and time of each token.

    With --prompts the texts come in the order of FILE, with --json as one object a line; a prompt that fails is named,
    and the others go on.
    """
    check_usage(prompt, prompts, batch)
    if params["logprobs"] is not None and not as_json:
        raise WrongUsageError("found --logprobs without --json, expected both; add --json")
    from ..generation.sampling.params import Params

    with option_names():  # before the model is opened, so that a wrong number is reported immediately
        parameters = Params(**params)
        search = search_options(beams, beam_margin, length_penalty, best_of, batch)
        if search is not None:
            search.check(parameters)
        if beams is not None and params["temperature"] != 0 and "temperature" in typed(ctx):
            raise WrongUsageError(
                f"found temperature {params['temperature']} with a beam search, which draws nothing; leave it out"
            )
    constraint = read_constraint(json_schema, regex, grammar)
    if constraint is not None and beams is not None:
        raise WrongUsageError("found --beams and a constraint on the text, expected one of them; --best-of takes one")
    definitions = read_tools(tools, tool_format)
    asked = "--tools" if definitions else "--template" if template is not None else None
    if asked:
        other = {
            "--prompts": prompts is not None, "--beams": beams is not None, "--best-of": best_of is not None,
            "--raw": chat is False, "a constraint": bool(definitions) and constraint is not None,
        }  # fmt: skip
        check_chat(asked, other)
    lines = read_prompts(prompts) if prompts is not None else []
    text = "" if prompt is None else read_prompt(prompt)
    from ..format.locate import find_model
    from ..generation.engine import load

    folder = find_model(model)
    if chat is not False:
        prepare_chat(folder)
    engine = load(folder, device=device, target=target, threads=threads, verify=verify)
    is_chat = engine.manifest.chat_template is not None if chat is None else chat
    compiled = compile_constraint(engine, constraint)
    if beams is None:  # a search draws nothing
        parameters = replace(parameters, **model_defaults(engine, ctx))
    shown: dict[str, Any] = {"is_chat": is_chat, "usage": usage, "as_json": as_json}
    if search is not None or lines:
        warn(engine, parameters)
    if search is not None:
        search.grammar = compiled
        if lines:
            ctx.exit(search_many(engine, lines, parameters, search, **shown))
        ctx.exit(search_one(engine, text, parameters, search, **shown))
    if lines:
        slots = 8 if batch is None else batch
        ctx.exit(generate_many(engine, lines, parameters, grammar=compiled, slots=slots, **shown))
    calls = ToolCalls(engine, definitions, tool_format) if definitions else None
    if calls is not None:
        parameters = replace(parameters, show_special=parameters.show_special or calls.shown)
    from ..chat.prompt import ChatOptions

    options = ChatOptions(tools=definitions, template=template)
    ctx.exit(generate_one(engine, text, parameters, options=options, grammar=compiled, calls=calls, **shown))


def prepare_chat(folder: Path) -> None:
    """Start what writes the prompts of chats while the model is opened, where the model has a chat template."""
    from ..chat.renderer import RENDERER
    from ..format.manifest import Manifest

    if Manifest.read(folder, verify=False).chat_template is not None:
        RENDERER.prepare()


def check_usage(prompt: str | None, prompts: str | None, batch: int | None) -> None:
    """Refuse options that exclude each other, before anything is opened."""
    if (prompt is None) == (prompts is None):
        which = "neither PROMPT nor" if prompt is None else "both PROMPT and"
        raise WrongUsageError(f"found {which} --prompts, expected one of them; type a text, or --prompts FILE")
    if batch is not None and prompts is None:
        raise WrongUsageError("found --batch without --prompts, expected both; it sets how many prompts run at a time")
    if batch is not None and batch < 1:
        raise WrongUsageError(f"found --batch {batch}, expected at least 1; leave it out for 8")


def check_chat(asked: str, other: dict[str, bool]) -> None:
    """Refuse an option of one chat together with one that excludes it.

    Args:
        asked: The option of a chat.
        other: What excludes it, and whether it is given.
    """
    for name, given in other.items():
        if given:
            raise WrongUsageError(f"found {asked} and {name}, expected one of them; leave one out")
