"""Options of how a text is drawn: the fields of `Params` that are about sampling and the end of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import Command, apply_options

if TYPE_CHECKING:
    from ...generation.engine import Engine


def sampling_options(command: Command) -> Command:
    """Add the options that set how a text is drawn and where it ends."""
    return apply_options(
        command,
        (
            click.option(
                "--max-new-tokens",
                type=int,
                help="Most tokens to generate, at least 1; by default 128, or fewer if the context ends, and in a chat "
                "what the context has room for.",
            ),
            click.option(
                "--temperature",
                type=float,
                default=0.8,
                show_default="the model's, else 0.8",
                help="Randomness of the choice, 0 to 1,000,000; 0 takes the most probable token.",
            ),
            click.option(
                "--top-k",
                type=int,
                metavar="K",
                help="Choose among the K most probable tokens, at least 1; by default the model's, else all.",
            ),
            click.option(
                "--top-p",
                type=float,
                default=1.0,
                show_default="the model's, else 1",
                help="Choose among the most probable tokens whose probabilities add up to this; above 0, at most 1.",
            ),
            click.option(
                "--min-p",
                type=float,
                default=0.0,
                show_default="the model's, else 0",
                help="Drop tokens less probable than this share of the highest probability; 0 to 1.",
            ),
            click.option(
                "--repetition-penalty",
                type=float,
                default=1.0,
                show_default="the model's, else 1",
                help="Above 1 makes tokens that occurred less probable; 0.01 to 100.",
            ),
            click.option(
                "--frequency-penalty",
                type=float,
                default=0.0,
                show_default=True,
                help="Subtracted from the logit of a token for each time that the generated text holds it; -2 to 2.",
            ),
            click.option(
                "--presence-penalty",
                type=float,
                default=0.0,
                show_default=True,
                help="Subtracted from the logits of the tokens that the generated text holds; -2 to 2.",
            ),
            click.option(
                "--stop", multiple=True, metavar="TEXT", help="End the text before this string; repeat for several."
            ),
            click.option(
                "--show-special",
                is_flag=True,
                help="Show special tokens in the text as they are spelled, except that of its end.",
            ),
            click.option("--seed", type=int, help="Seed of the sampling, at least 0; by default a new one each time."),
        ),
    )


def typed(ctx: click.Context) -> list[str]:
    """Return the names of the parameters that do not have their default."""
    return [name for name in ctx.params if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]


def model_defaults(engine: Engine, ctx: click.Context) -> dict[str, Any]:
    """Return the defaults of sampling that the model brings, without those that were typed."""
    sampling = engine.manifest.generation.sampling
    return {name: value for name, value in sampling.items() if name not in typed(ctx)}
