"""The actions of `adaptive train`, one for each mode of the command.

Only click and the standard library are imported at the top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..config.run_config import RunConfig
    from ..run.folder import Run
    from .request import Request


@dataclass(frozen=True)
class PrintConfig:
    """Print a config on stdout."""

    config: RunConfig

    def perform(self) -> int:
        """Print it."""
        click.echo(self.config.to_yaml(), nl=False)
        return 0


@dataclass(frozen=True)
class Begin:
    """Train a new run."""

    config: RunConfig
    run: Run
    overwrite: bool
    stop_at: int | None

    def perform(self) -> int:
        """Train, and return the exit code."""
        from .. import training
        from .report import report

        return report(training.begin(self.config, self.run, overwrite=self.overwrite, stop_at=self.stop_at))


@dataclass(frozen=True)
class Resume:
    """Resume a run."""

    run: Run
    overrides: Sequence[Mapping[str, Any]]
    stop_at: int | None
    override: bool

    def perform(self) -> int:
        """Train, and return the exit code."""
        from .. import training
        from .report import report

        return report(training.resume(self.run, self.overrides, stop_at=self.stop_at, override=self.override))


@dataclass(frozen=True)
class BeginOrResume:
    """Resume a run that has a checkpoint, or begin one that has none."""

    config: RunConfig
    run: Run
    overrides: Sequence[Mapping[str, Any]]
    stop_at: int | None

    def perform(self) -> int:
        """Train, and return the exit code."""
        from .. import training
        from .report import report

        return report(training.begin_or_resume(self.config, self.run, self.overrides, stop_at=self.stop_at))


@dataclass(frozen=True)
class TrainStages:
    """Train the stages of a recipe one after the other."""

    stages: Sequence[tuple[RunConfig, Run]]
    overwrite: bool
    stop_at: int | None

    def perform(self) -> int:
        """Train, and return the exit code; a stage whose gates fail makes it 1, and the next one is trained anyway."""
        from .. import training
        from .report import report

        code = 0
        for config, run in self.stages:
            outcome = training.begin(config, run, overwrite=self.overwrite, stop_at=self.stop_at)
            code = report(outcome) or code
            if not outcome.complete or outcome.exit_code > 1:
                code = outcome.exit_code
                break
        if len(self.stages) > 1:
            click.echo(f"next: adaptive compare {' '.join(run.name for _, run in self.stages)}", err=True)
        return code


Action = PrintConfig | Begin | Resume | BeginOrResume | TrainStages


def resolve(request: Request) -> Action:
    """Choose the action of a request.

    Raises:
        UserError: A recipe, a run or a setting cannot be used.
    """
    overrides = request.overrides()
    if request.stage is not None:
        return resolve_stages(request, request.stage, overrides)
    if request.resume:
        return resolve_resume(request, overrides)
    return resolve_begin(request, overrides)


def resolve_stages(request: Request, stage: str, overrides: Sequence[Mapping[str, Any]]) -> Action:
    """Choose the action of a request with --stage."""
    from ..recipe_stages import staged

    assert request.recipe is not None  # --stage requires it
    stages = staged(request.recipe, stage, request.name or request.recipe, overrides)
    if request.print_config:
        return PrintConfig(stages[0][0])
    return TrainStages(stages, request.overwrite, request.stop_at)


def resolve_resume(request: Request, overrides: Sequence[Mapping[str, Any]]) -> Action:
    """Choose the action of a request with --resume."""
    from ..config.run_config import make_config, read_recipe
    from ..run.checkpoints.checkpoint import load_checkpoint
    from ..run.folder import named_run, newest_run

    run = named_run(request.name) if request.name else newest_run()
    if request.recipe:
        overrides = [{"recipe": read_recipe(request.recipe)["recipe"]}, *overrides]
    if request.print_config:
        return PrintConfig(make_config(load_checkpoint(run.path).config.model_dump(mode="json"), overrides))
    return Resume(run, overrides, request.stop_at, request.override_resume)


def resolve_begin(request: Request, overrides: Sequence[Mapping[str, Any]]) -> Action:
    """Choose the action of a request for a new run."""
    from ..config.run_config import read_recipe

    if request.origin is not None:
        without: str | None = "lora" if request.lora else "fine-tune"
    else:
        without = None if request.flags["sources"] else "quickstart"
    recipe = request.recipe or without
    base = read_recipe(recipe) if recipe else {}
    origin = origin_of(request, base)
    if request.print_config:
        return PrintConfig(new_config(request, origin, base, overrides))
    # Here, because the ranks need torch, and a config is printed without it.
    from ..parallel.world import World, restarted
    from ..run.folder import named_run, next_run

    name = base.get("recipe") if origin is None else Path(origin["run"]).name
    run = named_run(World().broadcast_text(request.name or next_run(request.stem(name), again=restarted()).name))
    again = request.begin_or_resume or restarted()
    if again and origin is not None and World().broadcast_float(run.begun):
        return Resume(run, overrides, request.stop_at, False)  # it needs the other run no more
    config = new_config(request, origin, base, overrides)
    if again:
        return BeginOrResume(config, run, overrides, request.stop_at)
    return Begin(config, run, request.overwrite, request.stop_at)


def origin_of(request: Request, base: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the section `origin`: that of --from and --checkpoint, else that of the recipe, if there is one."""
    if request.origin is not None:
        return {"run": request.origin, "checkpoint": request.checkpoint or "last"}
    given = base.get("origin")
    return given if isinstance(given, Mapping) and "run" in given else None


def new_config(
    request: Request,
    origin: Mapping[str, Any] | None,
    base: Mapping[str, Any],
    overrides: Sequence[Mapping[str, Any]],
) -> RunConfig:
    """Make the config of a new run: of a new model, or of one that goes on from `origin`."""
    from ..config.run_config import make_config

    if origin is None:
        return make_config(base, overrides)
    from ..run.origin import config_from, read_origin

    checked = make_config({"origin": origin}).origin
    assert checked is not None
    if request.lora is not None:
        from ..importing.peft import read_peft

        source = read_origin(checked)
        overrides = [{"lora": read_peft(request.lora, source.config.model, source.run).settings}, *overrides]
    return config_from(checked, base, overrides)
