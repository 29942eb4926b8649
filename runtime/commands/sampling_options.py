"""Options that set how a token is chosen: the fields of `Sampling`, and where a text ends."""

import click

from .options import Command, apply_options


def sampling_options(command: Command) -> Command:
    """Add them to a command."""
    return apply_options(
        command,
        (
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
            click.option("--seed", type=int, help="Seed of the sampling, at least 0; by default a new one each time."),
        ),
    )
