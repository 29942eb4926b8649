"""The commands `adaptive generate` and `adaptive bench`, and the options that commands share.

Only click and the standard library up here: help is quick.
"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import UserError

if TYPE_CHECKING:
    from ..dial.dial import Dial
    from ..generation.engine import Engine, Generation, Params, Token

EXIT_INTERRUPTED = 130  # 128 + SIGINT
Command = TypeVar("Command", bound=Callable[..., Any])


def _all(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def dial_options(command: Command) -> Command:
    """How much of the model to run: the fields of `Dial`."""
    return _all(command, (
        click.option("--compute", type=float, metavar="SHARE",
                     help="Share of the dense FLOPs, above 0 to 1, of a calibrated model."),
        click.option("--target-ms", type=float, metavar="MS",
                     help="Most compute that was measured to take at most this per token."),
        click.option("--target-loss", type=float, metavar="NATS",
                     help="Least compute that was measured to lose at most this per token."),
        click.option("--agreement", type=float, metavar="SHARE",
                     help="Leave early only so far that this share of tokens chooses as if none left."),
        click.option("--experts", type=float, metavar="N", help="Wanted average of experts per token and layer."),
        click.option("--heads", type=float, metavar="N", help="Wanted average of heads per token and layer."),
        click.option("--layers-share", type=float,
                     help="Wanted share of tokens that run each layer with a router."),
        click.option("--router-top-p", type=float, help="Expert threshold, 0 to 1; 1 keeps every expert."),
        click.option("--head-top-p", type=float, help="Head threshold, 0 to 1; 1 uses every head."),
        click.option("--depth-threshold", type=float, help="Layer threshold, 0 to 1; 0 runs every layer."),
        click.option("--exit-threshold", type=float, help="Sureness at which a token leaves early; 1 is never."),
    ))  # fmt: skip


def model_options(command: Command) -> Command:
    """Which model, and where it runs."""
    return _all(command, (
        click.option("--model", metavar="FOLDER", help="Exported model; by default the newest under runs/."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        click.option("--threads", type=int,
                     help="Threads of one operator; by default one per core, one for a small model."),
        click.option("--verify/--no-verify", default=True, help="Compare the files with their digests first."),
    ))  # fmt: skip


def check_plot(path: str | None) -> None:
    """Refuse a plot in a form that nobody draws."""
    if path and Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise click.BadParameter(f"found {path!r}, expected a name ending in .png, .svg or .pdf", param_hint="--plot")


@click.command(epilog='\b\nExample: adaptive generate "How do mountains form?" --temperature 0 --usage tokens')
@click.argument("prompt")
@click.option("--max-new-tokens", type=int, help="At most this many; by default 128, or what the context has room for.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 takes the most probable token.")
@click.option("--top-k", type=int, help="Choose among the K most probable tokens.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Choose among tokens that hold this mass.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Drop tokens this much rarer than the first.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1 avoids repetition.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("--seed", type=int, help="Of the random numbers; by default a new one each time.")
@click.option(
    "--chat/--raw", "chat", default=None, help="Through the chat template, or as it is; by default as trained."
)
@click.option("--usage", type=click.Choice(["none", "summary", "tokens"]), default="summary", show_default=True,
              help="What to tell of the compute, on stderr.")  # fmt: skip
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, with the usage of each token, at the end."
)
@dial_options
@model_options
@click.pass_context
def generate(
    ctx: click.Context, /, prompt: str, model: str | None, chat: bool | None, usage: str, as_json: bool, device: str,
    threads: int | None, verify: bool, **params: Any,
) -> None:  # fmt: skip
    """Continue PROMPT with an exported model, or answer it; `-` reads the prompt from stdin.

    The text goes to stdout as it comes, what it cost to stderr. `tokens` shows the text coloured by compute and a table
    with the experts, layers, share of dense FLOPs and time of each token.
    """
    text = read_prompt(prompt)
    from ..generation.engine import Params

    wanted = Params(**params)  # before the model is opened: a wrong number is answered at once
    from ..format.locate import find_model
    from ..generation.engine import load

    engine = load(find_model(model), device=device, threads=threads, verify=verify)
    talk = engine.manifest.chat_template is not None if chat is None else chat
    generation = begin(engine, text, talk, wanted)
    remark(engine, wanted)
    tokens: list[Token] = []
    interrupted = False
    try:
        if as_json:
            tokens.extend(generation)
        else:
            with utf8_stdout():
                stream(collected(generation, tokens), strip=talk)
    except KeyboardInterrupt:
        interrupted = True
        if not as_json:
            click.echo()
    report(engine, generation, tokens, usage, as_json)
    if interrupted:
        ctx.exit(EXIT_INTERRUPTED)


def read_prompt(prompt: str) -> str:
    """The prompt itself, or stdin for `-`, without the line end that the shell adds. Raises UserError if not UTF-8."""
    if prompt != "-":
        return prompt
    content = sys.stdin.buffer.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"stdin is not valid UTF-8: found byte 0x{content[error.start]:02x} at {error.start}; "
            "convert it with: iconv -t UTF-8"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


def begin(engine: Engine, text: str, talk: bool, params: Params) -> Generation:
    """The generation, and a word on stderr about characters that the tokenizer does not have."""
    if not text:
        raise UserError("the prompt is empty, expected at least one character; type a text to continue")
    ids = engine.chat([{"role": "user", "content": text}]) if talk else engine.tokenizer.encode(text)
    unknown = engine.tokenizer.encode(text).count(-1 if (u := engine.tokenizer.unknown_id) is None else u)
    if unknown:
        click.echo(f"note: {unknown} tokens of the prompt are unknown to this model's tokenizer", err=True)
    return engine.generate(ids, params)


def remark(engine: Engine, dial: Dial) -> None:
    """What a person should know of the asked point of a calibrated model, on stderr."""
    if not dial.calibrated:
        return
    from ..dial.dial import remarks
    from ..measuring.machine import describe

    for line in remarks(engine.manifest, dial, describe(engine.session)):
        click.echo(f"note: {line}", err=True)


def collected(tokens: Iterable[Token], into: list[Token]) -> Iterator[Token]:
    """The same tokens, kept in `into` as they pass."""
    for token in tokens:
        into.append(token)
        yield token


def stream(tokens: Iterable[Token], *, strip: bool) -> None:
    """Text to stdout as it comes, ended by a line end; without the white space before an answer if `strip`."""
    begun, ended = not strip, False
    for token in tokens:
        text = token.text if begun else token.text.lstrip()
        if text:
            begun, ended = True, text.endswith("\n")
            click.echo(text, nl=False)
            sys.stdout.flush()
    if not ended:
        click.echo()


@contextmanager
def utf8_stdout() -> Iterator[None]:
    """A character that the terminal's encoding lacks becomes `?`, not an error in the middle of a text."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    yield


def report(engine: Engine, generation: Generation, tokens: list[Token], usage: str, as_json: bool) -> None:
    """The JSON object on stdout, and on stderr what `usage` asks for."""
    from ..generation.summary import summarise, token_json

    summary = summarise(generation, tokens)
    if as_json:
        content = {
            "text": "".join(token.text for token in tokens),
            "tokens": [token_json(token) for token in tokens],
            "usage": summary.as_json(),
            "thresholds": generation.thresholds.as_lists(),
        }
        click.echo(json_module.dumps(content))
        return
    if usage == "none":
        return
    from ..generation.render import show_summary, show_tokens

    if usage == "tokens":
        show_tokens(tokens, engine.manifest)
    show_summary(summary, engine.manifest)


@click.command(epilog="\b\nExample: adaptive bench --sweep --plot dial.svg")
@click.option("--prompt-tokens", type=int, default=64, show_default=True, help="Length of the prompt.")
@click.option("--new-tokens", type=int, default=128, show_default=True, help="Tokens to decode after it.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Rounds, after one that warms up.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the place in the text, and of the sampling.")
@click.option("--sweep", "walk", is_flag=True, help="Walk the dial: quality against measured time.")
@click.option("--plot", "plot_path", metavar="FILE", help="Where to draw the sweep: .png, .svg or .pdf.")
@click.option("--text", metavar="FILE", help="Text to read and to score; by default heldout.txt of the run.")
@click.option("--text-tokens", type=int, default=8192, show_default=True, help="Score at most this many at each point.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@dial_options
@model_options
def bench(
    model: str | None, plot_path: str | None, text: str | None, as_json: bool, device: str, threads: int | None,
    verify: bool, prompt_tokens: int, new_tokens: int, repeats: int, seed: int, walk: bool, text_tokens: int,
    **dial: float | None,
) -> None:  # fmt: skip
    """Measure an exported model on this machine: prefill, decode, load time, memory, and the memory floor.

    A token's time is that of the pass and of choosing the next token; shown are the median and the 5th and 95th
    percentile over all rounds, and how far the medians of the rounds lie apart. The floor is the time to read the
    weights and the cache that a token used, at the rate at which this machine was measured to read as much memory.

    --sweep walks the dial in rounds that interleave all points, and gives for each three shares of the whole model:
    theoretical (FLOPs of the attention and experts that ran, over those of all), executed (all FLOPs, with head,
    routers, exit checks and keys of skipped layers, over all of the dense pass) and measured (time over that of the
    point `all`), with the bits per byte on held-out text. It is drawn beside the model's folder, or to --plot.
    """
    if plot_path and not walk:
        raise click.UsageError("--plot draws a sweep; add --sweep")
    check_plot(plot_path)
    from ..dial.dial import Dial
    from ..format.locate import find_model
    from ..measuring.bench import BenchParams
    from ..measuring.bench import bench as measure

    params = BenchParams(prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats, seed=seed, walk=walk,
                         text=Path(text) if text else None, text_tokens=text_tokens, dial=Dial(**dial))  # fmt: skip
    folder = find_model(model)
    result = measure(folder, params, device=device, threads=threads, verify=verify)
    if walk and result["sweep"][0]["bits_per_byte"] is None:
        click.echo("note: no held-out text beside the model, so no bits per byte; give one with --text FILE", err=True)
    if as_json:
        click.echo(json_module.dumps(result))
    else:
        from ..measuring.bench_tables import show

        show(result)
    if walk:
        from ..measuring.bench_tables import plot
        from ..terminal.drawing import beside, draw

        draw(partial(plot, result), Path(plot_path) if plot_path else beside(folder, "sweep"), asked=bool(plot_path))
