"""A recipe in stages: each is a run of its own, begun anew, that is to be no worse than the one before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from .config.run_config import RECIPES, RunConfig, make_config, read_recipe
from .run.folder import RUNS, Run, named_run

NAMES = ("baseline", "1", "2", "3", "4")
ALL = "all"


def stages_of(recipe: str) -> list[str]:
    """The stages of a recipe that comes with the program: of which there is a recipe RECIPE-STAGE."""
    return [stage for stage in NAMES if (RECIPES / f"{recipe}-{stage}.yaml").is_file()]


def run_name(name: str, stage: str) -> str:
    """`science-qa-baseline`, `science-qa-stage1`"""
    return f"{name}-{stage if stage == NAMES[0] else f'stage{stage}'}"


def staged(
    recipe: str, wanted: str, name: str, overrides: Iterable[Mapping[str, Any]], runs: Path = RUNS
) -> list[tuple[RunConfig, Run]]:
    """The config and the run of the stage that is wanted, or of all in order; each has the stage before as its parent.

    Stages do not go on from each other's weights: each has other ones, or other optimizers, and a stage that starts
    where another ended says nothing of its own worth.

    Raises:
        UserError: the recipe has no stages, or not this one, or an override does not fit.
    """
    known = stages_of(recipe)
    if not known:
        raise UserError(f"recipe {recipe!r} has no stages; leave out --stage, or name one that has: science-qa")
    if wanted not in (*known, ALL):
        raise UserError(f"recipe {recipe!r} has no stage {wanted!r}; its stages are {', '.join(known)}, or all")
    made = []
    given = list(overrides)
    for before, stage in zip([None, *known], known, strict=False):
        if wanted in (stage, ALL):
            parent: dict[str, Any] = {} if before is None else {"parent": run_name(name, before)}
            config = make_config(read_recipe(f"{recipe}-{stage}"), [parent, *given])
            made.append((config, named_run(run_name(name, stage), runs)))
    return made
