"""The command `adaptive eval`."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from .options.common import (
    PATH,
    check_plot,
    dial_points,
    dial_points_options,
    model_options,
    option_names,
    timed_text_options,
)


@click.command(
    "eval",
    epilog="\b\nExample: adaptive eval --data README.md --compute 1,0.7,0.5",
)
@click.option("--data", type=PATH, multiple=True, metavar="FILE",
              help="Text to score; repeat for several; by default heldout.txt of the run.")  # fmt: skip
@click.option("--against", metavar="MODEL",
              help="Compare with this model, of the same vocabulary: KL divergence and agreement.")  # fmt: skip
@click.option("--against-compute", type=float, metavar="SHARE",
              help="Compute of the reference, above 0, at most 1; without --against, of the model itself.")  # fmt: skip
@click.option("--tokens", type=int, metavar="N", help="Most tokens of each text to score, at least 1; by default all.")
@click.option("--window", type=int, metavar="N",
              help="Tokens of a window, at least 2; by default the model's context, at most 2048.")  # fmt: skip
@click.option("--stride", type=int, metavar="N",
              help="Tokens from one window to the next, at least 1; by default half a window.")  # fmt: skip
@click.option("--tasks", metavar="NAME[,NAME...]", help="Tasks of the lm-evaluation-harness, by their names.")
@click.option("--include-path", type=PATH, metavar="FOLDER", help="Tasks: folder with further tasks, as .yaml files.")
@click.option("--limit", type=float, metavar="N",
              help="Tasks: documents of each, above 0; below 1, the share of them; by default all.")  # fmt: skip
@click.option("--num-fewshot", type=int, metavar="N",
              help="Tasks: examples in the prompt, at least 0; by default as the task says.")  # fmt: skip
@click.option("--apply-chat-template", is_flag=True, help="Tasks: write prompts by the chat template of the model.")
@click.option("--system-instruction", metavar="TEXT", help="Tasks: the system message.")
@click.option("--repeats", type=int, metavar="N",
              help="Timing: rounds, at least 0; by default 5 for several points, else 0: no times.")  # fmt: skip
@timed_text_options
@click.option("--seed", type=int, default=0, show_default=True,
              help="Timing: seed of the place in the text and of the order of the points, at least 0.")  # fmt: skip
@click.option("--plot", "plot_path", type=PATH, metavar="FILE", help="Plot of the points: a .png, .svg or .pdf file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@dial_points_options
@model_options
def evaluate(
    model: str | None, data: tuple[Path, ...], against: str | None, against_compute: float | None, tokens: int | None,
    window: int | None, stride: int | None, tasks: str | None, include_path: Path | None, limit: float | None,
    num_fewshot: int | None, apply_chat_template: bool, system_instruction: str | None, repeats: int | None,
    prompt_tokens: int, new_tokens: int, seed: int, plot_path: Path | None, as_json: bool, device: str, target: str,
    threads: int | None, verify: bool, **dial: tuple[float, ...],
) -> None:  # fmt: skip
    """Judge a model: its loss on texts, its distance from another model, and its results in tasks.

    The loss is in nats per token; perplexity is its exponential, and bits per byte do not depend on the tokenizer. A
    long text is read in windows that overlap: every token is scored once, after the tokens before it in its window.

    --against adds the KL divergence from the other model, KL(other || model) in nats per token, and the share of the
    tokens for which both have the same most probable successor. --against-compute compares the model with itself.

    --tasks runs tasks of the lm-evaluation-harness (extra `eval`), each at every point of the dial.

    An option of the dial takes several values, such as --compute 1,0.7,0.5: each is a row of the table and a point of
    the plot, which shows quality over measured time.
    """
    points = dial_points(dial)
    check_plot(plot_path)
    only_with_tasks = {"--include-path": include_path, "--limit": limit, "--num-fewshot": num_fewshot,
                       "--apply-chat-template": apply_chat_template or None,
                       "--system-instruction": system_instruction}  # fmt: skip
    without = next((name for name, value in only_with_tasks.items() if value is not None and tasks is None), None)
    if without:
        raise click.UsageError(f"{without} is for tasks; add --tasks NAME")
    from ..dial import Dial
    from ..evaluation.evaluate import evaluate as measure
    from ..evaluation.params import EvalParams, TaskParams
    from ..evaluation.tables import plot, show
    from ..format.locate import find_model
    from ..terminal.drawing import beside, draw
    from ..terminal.progress import Progress

    with option_names():
        harness: dict[str, Any] = {"include_path": include_path, "limit": limit, "num_fewshot": num_fewshot,
                                   "apply_chat_template": apply_chat_template,
                                   "system_instruction": system_instruction}  # fmt: skip
        params = EvalParams(
            data=data,
            dials=tuple(Dial(**each) for each in points),
            against=None if against is None else find_model(against),
            against_compute=against_compute,
            tokens=tokens, window=window, stride=stride, repeats=repeats, prompt_tokens=prompt_tokens,
            new_tokens=new_tokens, seed=seed,
            tasks=None if tasks is None else TaskParams(tasks=names_of(tasks), **harness),
        )  # fmt: skip
        folder = find_model(model)
        if tasks is not None:
            os.environ.setdefault("TQDM_DISABLE", "1")  # a bar of the harness for each task and point: ours are enough
        with Progress() as progress:
            result = measure(folder, params, progress, device=device, target=target, threads=threads, verify=verify)
    if as_json:
        click.echo(json.dumps(result))
    else:
        show(result)
    if len(points) > 1 or plot_path:
        draw(partial(plot, result), plot_path or beside(folder, "eval"), requested=plot_path is not None)


def names_of(tasks: str) -> tuple[str, ...]:
    """Split the names of tasks at their commas."""
    names = tuple(name for name in (part.strip() for part in tasks.split(",")) if name)
    if not names:
        raise click.BadParameter("found no name, expected names with commas between them", param_hint="--tasks")
    return names
