"""The command `adaptive bench`."""

import json as json_module
from functools import partial
from pathlib import Path

import click

from .options.common import PATH, check_plot, dial_options, model_options, option_names


def whole_numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the numbers of a list such as 64,1024."""
    if value is None:
        return ()
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"found {value!r}, expected whole numbers, such as 64,1024") from error


@click.command(
    epilog="""\b
Example: adaptive bench --sweep --plot dial.svg
Example: adaptive bench --contexts 64,1024
Example: adaptive bench --compare quickstart:cpu quickstart:portable"""
)
@click.argument("models", nargs=-1, metavar="[--compare MODEL[:TARGET] MODEL[:TARGET]...]")
@click.option("--prompt-tokens", type=int, default=64, show_default=True, help="Length of the prompt, at least 1.")
@click.option(
    "--new-tokens", type=int, default=128, show_default=True, help="Tokens to decode after the prompt, at least 1."
)
@click.option(
    "--repeats", type=int, default=5, show_default=True, help="Rounds to measure, at least 1; one more warms up."
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the prompt's place in the text and of the sampling, at least 0.",
)
@click.option(
    "--contexts",
    metavar="N,N...",
    callback=whole_numbers,
    help="Also measure decoding after texts of these lengths, in turns, such as 64,1024.",
)
@click.option("--sweep", "walk", is_flag=True, help="Measure quality and time at several points of the dial.")
@click.option("--compare", is_flag=True, help="Compare the speed of the models or targets given, in one run.")
@click.option("--plot", "plot_path", type=PATH, metavar="FILE", help="Plot of --sweep: a .png, .svg or .pdf file.")
@click.option("--text", type=PATH, metavar="FILE", help="Text to read and to score; by default heldout.txt of the run.")
@click.option(
    "--text-tokens",
    type=int,
    default=8192,
    show_default=True,
    help="Score at most this many tokens at each point; at least 1.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@dial_options
@model_options
def bench(
    model: str | None, plot_path: Path | None, text: Path | None, as_json: bool, device: str, target: str,
    threads: int | None, verify: bool, models: tuple[str, ...], compare: bool, prompt_tokens: int, new_tokens: int,
    repeats: int, seed: int, walk: bool, text_tokens: int, contexts: tuple[int, ...], **dial: float | None,
) -> None:  # fmt: skip
    """Measure an exported model on this machine: prefill, decode, load time, memory, and the memory floor.

    The time of a token includes the pass of the model and the choice of the next token. The table shows the median and
    the 5th and 95th percentile over all rounds, and the spread of the medians of the rounds. The memory floor is the
    time to read the weights and the cache that a token used, at the measured memory bandwidth of this machine.

    --sweep measures several points of the dial in alternating rounds. For each point it shows three shares of the whole
    model: theoretical (FLOPs of the attention and experts that ran, over those of all attention and experts), executed
    (all FLOPs, including output head, routers, exit checks and keys of skipped layers, over all FLOPs of the dense
    pass) and measured (time, over that of the point `all`), and the bits per byte on held-out text. The plot is drawn
    beside the model's folder, or to --plot.

    --contexts decodes after texts of several lengths, in alternating rounds. It shows the ratio of the times to those
    of the first one, the bytes that a token reads, and the memory of a text: keys and values grow with the text, the
    states of recurrent layers do not.

    --compare measures two or more models in alternating rounds, and shows the ratio of each time to that of the first
    one: paired by round, with its median, its 5th and 95th percentile, and beside the clock the CPU time. MODEL is a
    folder or the name of a run. Models with different tokenizers read the same random ids.
    """
    if models and not compare:
        raise click.UsageError(f"found {models[0]!r}; to measure one model, type: adaptive bench --model {models[0]}")
    if compare and (model or walk or contexts):
        option = "--model" if model else "--sweep" if walk else "--contexts"
        raise click.UsageError(
            f"--compare names its models itself and measures no sweep and no contexts; leave {option} out"
        )
    if plot_path and not walk:
        raise click.UsageError("--plot draws a sweep; add --sweep")
    check_plot(plot_path)
    from ..dial import Dial
    from ..format.locate import find_model
    from ..measuring.bench import BenchParams
    from ..measuring.bench import bench as measure

    with option_names():
        params = BenchParams(prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats, seed=seed, walk=walk,
                             text=text, text_tokens=text_tokens, contexts=contexts, dial=Dial(**dial))  # fmt: skip
    if compare:
        from ..measuring.bench_tables import show_comparison
        from ..measuring.compare import compare_models, entries

        comparison = compare_models(entries(models, target), params, device=device, threads=threads, verify=verify)
        if as_json:
            click.echo(json_module.dumps(comparison))
        else:
            show_comparison(comparison)
        return
    folder = find_model(model)
    result = measure(folder, params, device=device, target=target, threads=threads, verify=verify)
    if result["note"]:
        click.echo(f"note: {result['note']}", err=True)
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

        draw(partial(plot, result), plot_path or beside(folder, "sweep"), requested=plot_path is not None)
