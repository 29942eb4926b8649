"""The command `adaptive`: a table of commands, and the messages when one of them fails."""

import difflib
import importlib
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from ..contract.errors import EXIT_INTERRUPTED, UserError
from ..contract.streams import guard_streams

# Command -> where it is defined. Strings, because serve may only import runtime, and because a command that is not
# called should not be imported.
COMMANDS: Mapping[str, str] = {
    "train": "adaptive_lm.train.commands.train:train",
    "import": "adaptive_lm.train.commands.import_:import_",
    "runs": "adaptive_lm.train.commands.runs:runs",
    "compare": "adaptive_lm.train.commands.runs:compare",
    "export": "adaptive_lm.export.commands.export:export",
    "calibrate": "adaptive_lm.runtime.commands.calibrate:calibrate",
    "generate": "adaptive_lm.runtime.commands.generate:generate",
    "chat": "adaptive_lm.runtime.commands.chat:chat",
    "embed": "adaptive_lm.runtime.commands.embed:embed",
    "serve": "adaptive_lm.serve.commands.serve:serve",
    "bench": "adaptive_lm.runtime.commands.bench:bench",
    "eval": "adaptive_lm.runtime.commands.eval:evaluate",
    "inspect": "adaptive_lm.export.commands.inspect:inspect",
}

# Module -> the extra that installs it.
EXTRAS: Mapping[str, str] = {
    "matplotlib": "plot",
    "onnx": "train",
    "pyarrow": "train",
    "safetensors": "train",
    "tensorboard": "train",
    "torch": "train",
    "yaml": "train",
    "datasets": "hf",
    "lm_eval": "eval",
    "gguf": "import",
    "llguidance": "structured",
    "opentelemetry": "otel",
    "prometheus_client": "serve",
    "ray": "ray",
    "starlette": "serve",
    "structlog": "serve",
    "uvicorn": "serve",
}


class LazyGroup(click.Group):
    """A click group that imports a command only when it is called.

    Args:
        args: Passed on to click.
        table: Name of a command -> `module:attribute`.
        kwargs: Passed on to click.
    """

    def __init__(self, *args: Any, table: Mapping[str, str] = COMMANDS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order in which they are used, not by alphabet."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve the command; suggest the closest one for a mistyped name."""
        if args[0] not in self.table and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(unknown_command(args[0], list(self.table)))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A UserError is printed as one line; a bug keeps its traceback."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, where click handles a closed pipe, and not at exit, where Python reports it
        except KeyboardInterrupt:
            click.echo(err=True)  # so that the prompt of the shell does not start after `^C`
            ctx.exit(EXIT_INTERRUPTED)
        except ModuleNotFoundError as error:
            message = missing_extra(error)
            if message is None:
                raise
            self.fail(ctx, message)
        except UserError as error:
            self.fail(ctx, str(error), error.exit_code)
        return result

    @staticmethod
    def fail(ctx: click.Context, message: str, exit_code: int = 1) -> NoReturn:
        """Print the message instead of a traceback, and exit with `exit_code`."""
        click.echo(f"error: {message}", err=True)
        ctx.exit(exit_code)


def unknown_command(name: str, commands: list[str]) -> str:
    """Return the message for a command that does not exist, with the closest one that does."""
    nearest = difflib.get_close_matches(name, commands, n=1)
    hint = f"did you mean: adaptive {nearest[0]}" if nearest else "see: adaptive --help"
    return f"no command {name!r}; there are {', '.join(commands)}; {hint}"


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Return the message for a library that an extra installs; None for any other missing module."""
    library = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(library)
    if extra is None:
        return None
    return f'{library} is not installed, this command needs it; type: pip install "adaptive-lm[{extra}]"'


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: adaptive train quickstart --name demo",
)
@click.version_option(package_name="adaptive-lm", prog_name="adaptive", message="%(prog)s %(version)s")
def group() -> None:
    """Language models that choose, token by token, how much of themselves to run.

    Train one, export it to a single ONNX file, and run that file anywhere.
    """


def main() -> None:
    """Run the console script `adaptive`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        guard_streams()
        try:
            group(prog_name="adaptive")
        finally:
            sys.stdout.flush()  # not at exit, where Python would print a traceback
    except UserError as error:  # of a stream: LazyGroup reports all others
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
