"""Recipes in stages: each stage is a run of its own with new weights, compared with the stage before it."""

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
    """Return the stages of a built-in recipe: those for which there is a recipe RECIPE-STAGE."""
    return [stage for stage in NAMES if (RECIPES / f"{recipe}-{stage}.yaml").is_file()]


def run_name(name: str, stage: str) -> str:
    """Name the run of a stage: `science-qa-baseline`, `science-qa-stage1`."""
    return f"{name}-{stage if stage == NAMES[0] else f'stage{stage}'}"


def staged(
    recipe: str, wanted: str, name: str, overrides: Iterable[Mapping[str, Any]], runs: Path = RUNS
) -> list[tuple[RunConfig, Run]]:
    """Return the config and the run of one stage, or of all in order; each has the stage before as its parent.

    Stages do not continue from each other's weights: they differ in the weights or the optimizers they have, and a
    stage that starts where another ended would not show its own effect.

    Args:
        recipe: The name of a built-in recipe with stages.
        wanted: A stage, or `all`.
        name: The name of the runs, without the stage.
        overrides: Settings for every stage.
        runs: The folder of the runs.

    Raises:
        UserError: The recipe has no stages or not this one, or an override cannot be used.
    """
    stages = stages_of(recipe)
    if not stages:
        raise UserError(f"recipe {recipe!r} has no stages; leave out --stage, or name one that has: science-qa")
    if wanted not in (*stages, ALL):
        raise UserError(f"recipe {recipe!r} has no stage {wanted!r}; its stages are {', '.join(stages)}, or all")
    runs_of_stages = []
    shared = list(overrides)
    for before, stage in zip([None, *stages], stages, strict=False):
        if wanted in (stage, ALL):
            parent: dict[str, Any] = {} if before is None else {"parent": run_name(name, before)}
            config = make_config(read_recipe(f"{recipe}-{stage}"), [parent, *shared])
            runs_of_stages.append((config, named_run(run_name(name, stage), runs)))
    return runs_of_stages
