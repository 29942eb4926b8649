"""Options of `adaptive generate` for texts that must match a rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ....contract.errors import WrongUsageError
from ....contract.text.file import read_text

if TYPE_CHECKING:
    from ...generation.engine import Engine
    from ...structured.compiler import CompiledGrammar
    from ...structured.constraint import Constraint

Command = TypeVar("Command", bound=Callable[..., Any])


def constraint_options(command: Command) -> Command:
    """Add the options that name a rule."""
    for option in reversed((
        click.option("--json-schema", metavar="FILE",
                     help="Write JSON that is valid by the schema in FILE; needs the extra structured, as these two."),
        click.option("--regex", metavar="PATTERN",
                     help="Write a text that the regular expression matches from beginning to end."),
        click.option("--grammar", metavar="FILE",
                     help="Write a text that follows the grammar in FILE, in llguidance's dialect of Lark."),
    )):  # fmt: skip
        command = option(command)
    return command


def read_constraint(json_schema: str | None, regex: str | None, grammar: str | None) -> Constraint | None:
    """Return the rule that the options name; None where there is none.

    Raises:
        UserError: There is more than one, or it cannot be read.
    """
    given = {"--json-schema": json_schema, "--regex": regex, "--grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return None
    if len(names) > 1:
        raise WrongUsageError(f"found {names[0]} and {names[1]}, expected one of them; leave one out")
    from ...structured.constraint import Constraint

    if json_schema is not None:
        return Constraint.json_schema(read_text(Path(json_schema)))
    if grammar is not None:
        return Constraint.grammar(read_text(Path(grammar)))
    return Constraint.regex(regex or "")


def compile_constraint(engine: Engine, constraint: Constraint | None) -> CompiledGrammar | None:
    """Return the rule compiled for the model's tokenizer.

    Raises:
        UserError: llguidance is missing, or the rule cannot be used.
    """
    if constraint is None:
        return None
    from ...structured.compiler import Compiler

    compiler = Compiler(engine.tokenizer)
    try:
        return compiler.compile(constraint)
    finally:
        compiler.close()
