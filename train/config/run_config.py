"""The config of a run: typed sections, recipes and `--set`."""

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from ...contract.errors import UserError
from ...contract.files import user_path
from ..data.config import DataConfig, TokenizerConfig
from ..model.config.lora import LoraConfig
from ..model.config.loss import LossConfig
from ..model.config.model import ModelConfig
from ..optim.optimizer_config import OptimizerConfig
from ..optim.schedule_config import ScheduleConfig
from ..system.section import Section
from ..system.yaml_values import dump_yaml, load_setting, load_yaml
from .distillation import DistillationConfig, SelfDistillationConfig
from .explain import explain
from .gates import GatesConfig
from .monitor import MonitorConfig
from .origin import OriginConfig
from .trainer import TrainerConfig

RECIPES = Path(__file__).parent.parent / "recipes"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names that a run may have."""


class RunConfig(Section):
    """The config of a run: the same from `--print-config` to the checkpoint."""

    recipe: str | None = None
    """Name of the recipe that the run began from; set by the program."""
    parent: str | None = Field(None, pattern=NAME)
    """Name of the run that this one should improve on. If a gate of this run fails, the parent stays the best."""
    origin: OriginConfig | None = None
    """The run whose weights, model and tokenizer this one goes on from; null begins with new weights."""
    data: DataConfig = DataConfig()
    """The text: sources, held-out part, packing, augmentation."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Kind and size of the vocabulary."""
    model: ModelConfig = ModelConfig()
    """Shape of the model and its routing."""
    lora: LoraConfig | None = None
    """Adapters to train in place of the weights of `origin`; null trains the weights."""
    losses: LossConfig = LossConfig()
    """Weights of the auxiliary losses."""
    distillation: DistillationConfig | None = None
    """Learning from a larger model; null learns from the text alone."""
    self_distillation: SelfDistillationConfig | None = None
    """Learning of small dials from the full one; null trains the dial's full setting alone."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer, learning rates and clipping."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Course of the learning rates and of the sparsity."""
    trainer: TrainerConfig = TrainerConfig()
    """Length of the run, batches, evaluations, saves, device."""
    monitor: MonitorConfig = MonitorConfig()
    """Bands of healthy figures, and what is done outside them."""
    gates: GatesConfig = GatesConfig()
    """Conditions on the finished run."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.sequence_length > self.model.context_length:
            name = "sequence_lengths" if self.trainer.sequence_lengths else "sequence_length"
            raise ValueError(
                f"trainer.{name} ({self.sequence_length}) is longer than "
                f"model.context_length ({self.model.context_length})"
            )
        if self.trainer.sequence_lengths and self.data.staged:
            raise ValueError(
                "trainer.sequence_lengths and sources with epochs exclude each other: an epoch has one length; "
                "leave one of them out"
            )
        if self.trainer.steps is None and self.trainer.max_seconds is None and not self.data.ends:
            raise ValueError(
                "a run needs an end: set trainer.steps or trainer.max_seconds, or give every source its epochs"
            )
        if self.schedule.each_stage and (self.trainer.max_seconds is not None or not self.data.staged):
            raise ValueError(
                "schedule.each_stage needs sources with epochs and no trainer.max_seconds, since with a limit in "
                "seconds the end of a stage is unknown; give sources their epochs and set max_seconds to null, or "
                "leave each_stage out"
            )
        self.monitor.check(
            micro_batches=self.trainer.micro_batches,
            staged=self.data.staged,
            scheduled=bool(self.trainer.batch_schedule),
            parallel=self.trainer.parallel,
        )
        if self.model.ffn.task_bias and not self.data.tasks and self.data.sources:
            raise ValueError(
                "model.ffn.task_bias gives each task gates of its own, but there are no tasks; name them in "
                "data.tasks, or leave it out"
            )
        if self.model.ffn.task_bias and self.model.ffn.routing == "dense":
            raise ValueError("model.ffn.task_bias needs experts: set model.ffn.routing to top_p, or leave it out")
        if self.lora is not None:
            self._fit_lora()
        for section in (self.distillation, self.self_distillation):
            if section is not None:
                section.fit(self.model)
        if self.gates.no_worse_than_parent and self.parent is None:
            raise ValueError("gates.no_worse_than_parent needs a parent: name its run, as in --set parent=baseline")
        return self

    def _fit_lora(self) -> None:
        """Raise ValueError for a setting that adapters do not work with."""
        trainer = self.trainer
        for name, value, works in (
            ("optimizer.kind", self.optimizer.kind, "adamw"),
            ("trainer.compile", trainer.compile, False),
            ("trainer.parallel", trainer.parallel, "replicate"),
        ):
            if value != works:
                raise ValueError(
                    f"{name} is {value!r}, but the adapters of lora need {works!r}: set it, or leave lora out"
                )

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence; the largest of several lengths."""
        lengths = self.trainer.sequence_lengths or (self.trainer.sequence_length or self.model.context_length,)
        return max(lengths)

    def to_yaml(self) -> str:
        """Write the config as a recipe that gives this config again."""
        return dump_yaml(self.model_dump(mode="json"))


def recipe_names() -> list[str]:
    """List the recipes that come with the program."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(recipe: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a packaged recipe or the YAML file at a path; `extends` in it names a recipe whose values it overrides.

    Raises:
        UserError: there is no such recipe or file, it is not a YAML mapping, or it extends itself.
    """
    if recipe in extended_by:
        raise UserError(f"recipe {recipe!r} extends itself, by {', '.join(extended_by)}; leave out one `extends`")
    path = RECIPES / f"{recipe}.yaml"
    if recipe not in recipe_names():
        path = user_path(recipe)
        if not path.is_file():
            near = difflib.get_close_matches(recipe, recipe_names(), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"there is no recipe {recipe!r}; {hint}Recipes are {', '.join(recipe_names())}, or the path of a "
                "YAML file"
            )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make the file readable, or name another") from error
    try:
        values = load_yaml(content)
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as YAML: {error}. For an example of a config, type: adaptive train --print-config"
        ) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(
            f"{path} holds {type(values).__name__}, expected sections such as `trainer:` with keys under them"
        )
    base = values.pop("extends", None)
    if base is not None:
        values = merge(read_recipe(str(base), (*extended_by, recipe)), values)
    return {**values, "recipe": path.stem}


def parse_setting(setting: str) -> dict[str, Any]:
    """Read `trainer.steps=100` as {"trainer": {"steps": 100}}; for values see `load_setting`.

    Raises:
        UserError: there is no `=`, or the value has an open bracket or quote.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {setting!r}: expected section.key=value, for example --set trainer.steps=100")
    try:
        value = load_setting(text)
    except ValueError as error:
        raise UserError(
            f"--set {key}: the value cannot be read: {error}; put text in quotes inside the shell's, as in "
            f"--set '{key}=\"text\"'"
        ) from error
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`, section by section; lists are replaced."""
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        merged[key] = merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def make_config(base: Mapping[str, Any], overrides: Iterable[Mapping[str, Any]] = ()) -> RunConfig:
    """Apply the overrides to `base`, one after the other, and validate the result.

    Naming one of `trainer.steps` and `trainer.max_seconds` in the overrides switches the other off in the base, and so
    does naming one of `data.sources` and `data.tasks`.

    Raises:
        UserError: an unknown key (with the nearest known one) or a value that breaks a rule, each with its field.
    """
    explicit: dict[str, Any] = {}
    for one in overrides:
        explicit = merge(explicit, one)
    trainer = explicit.get("trainer")
    if isinstance(trainer, Mapping):
        for one_end, other in (("steps", "max_seconds"), ("max_seconds", "steps")):
            if trainer.get(one_end) is not None and other not in trainer:
                explicit = merge(explicit, {"trainer": {other: None}})
    data = explicit.get("data")
    if isinstance(data, Mapping) and bool(data.get("tasks")) != bool(data.get("sources")):
        others = {"sources": (), "val": None} if data.get("tasks") else {"tasks": ()}
        explicit = merge({"data": others}, explicit)
    sections = merge(base, explicit)
    check_numbers(sections)
    try:
        return RunConfig.model_validate(sections)
    except ValidationError as error:
        raise UserError(explain(error, RunConfig)) from error


def check_numbers(value: Any, field: str = "") -> None:
    """Check that every number is finite and every integer fits in 64 bits, in addition to the limits of its field.

    Raises:
        UserError: a number breaks this rule; the message names its field.
    """
    if isinstance(value, Mapping):
        for key, each in value.items():
            check_numbers(each, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            check_numbers(each, f"{field}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{field}: found {value}, expected a finite number of at most 1.8e308")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{field}: found an integer of {len(str(abs(value)))} digits, expected at most 2^63 - 1")
