"""The one config of a run: typed sections, recipes, `--set`, and the words for what does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...contract.errors import UserError
from ..data.config import DataConfig, TokenizerConfig
from ..model.config import ModelConfig
from ..model.loss_config import LossConfig
from ..optim.batch_size import BatchChange, check_changes
from ..optim.optimizer_config import OptimizerConfig
from ..optim.schedule_config import ScheduleConfig
from ..parallel import Parallel
from ..system.section import Section
from .explain import explain
from .gates import GatesConfig
from .monitor import MonitorConfig

RECIPES = Path(__file__).parent.parent / "recipes"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Of a run."""


class TrainerConfig(Section):
    """The loop: how long, how much at once, how often it looks up."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(0, ge=0, lt=2**63)
    steps: int | None = Field(None, ge=0)
    """Steps of the whole run; 0 writes a checkpoint of the initial weights; null leaves the end to the clock."""
    max_seconds: float | None = Field(120.0, gt=0)
    """Seconds of the whole run from its first step to its last save, earlier parts of a resumed run included."""
    batch_size: int = Field(8, ge=1)
    """Sequences per step."""
    batch_schedule: tuple[BatchChange, ...] = ()
    """Changes of the batch in the course of a run: [{from_share: 0.3, batch_size: 16}, {from_share: 0.6, ...}]. A small
    batch learns more from each token while gradients are large, a large one wastes less once they are noise (McCandlish
    et al. 2018, arXiv 1812.06162); `schedule.batch_rate` says what becomes of the learning rate."""
    micro_batches: int = Field(1, ge=1)
    """Parts of the batch that pass one after the other, their gradients weighted by scored tokens. A batch that grows
    has more parts of the same size, so that it needs no more memory."""
    sequence_length: int | None = Field(None, ge=2)
    """Tokens per sequence; null takes model.context_length."""
    sequence_lengths: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Several lengths in turn, one a step, in place of one; `batch_size` is that of the longest, and shorter steps have
    so many more sequences as keep the tokens of a step the same."""
    sequence_lengths_from: tuple[float, ...] = ()
    """Where each of `sequence_lengths` begins, in shares of the run: [0, 0.3, 0.7] has them one after the other, not
    mixed. Short first is cheaper where long attention is dear (Li et al. 2021, arXiv 2108.06084); mixed teaches all
    lengths to the end."""
    eval_every: int = Field(100, ge=1)
    eval_tokens: int = Field(8192, ge=1)
    """Held-out tokens scored every `eval_every` steps."""
    final_eval_tokens: int | None = Field(1_000_000, ge=1)
    """Held-out tokens scored at the end of the run, after the time it was given; null scores all."""
    checkpoint_every: int = Field(250, ge=1)
    """Steps from a checkpoint to the next; `eval_tokens` held-out tokens are scored with each."""
    keep_checkpoints: int = Field(3, ge=1)
    """Of the newest; that of the least held-out loss is kept as well."""
    save: Literal["blocking", "background"] = "blocking"
    """`background` writes checkpoints in a thread while training goes on, from a copy in memory as large as one; the
    files are the same. For models whose save takes seconds. One is written at a time; the next waits for it."""
    log_every: int = Field(10, ge=1)
    max_bad_steps: int = Field(10, ge=1)
    """Steps in a row that had to be skipped after which the run stops."""
    skip_spikes: bool = True
    """Skip a step whose loss or gradient norm is far beyond those of the last 128; one that is not finite always is."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 autocast where the processor has it; weights, optimizer and routers stay fp32."""
    threads: int | None = Field(None, ge=1)
    matmul: Literal["auto", "torch", "onednn"] = "auto"
    """Who multiplies matrices in fp32 on a CPU: torch by its BLAS, or oneDNN, twice as fast on some. `auto` measures on
    the run's shapes, once, in half a second; a resumed run keeps what was taken, for their last bits differ."""
    compile: bool = False
    """Steps take about two thirds of the time after half a minute of compiling, for which the next run of these shapes
    finds the machine code in the cache folder (`data.cache_dir`). For runs of minutes; needs a C++ compiler."""
    parallel: Parallel = "replicate"
    """Under several ranks (`--nproc`, torchrun): `replicate` has the model whole on each, the fastest where it fits;
    `shard` (FSDP2) has the rows of each matrix over them, where weights and optimizer do not fit; `experts` has the
    experts over them, and tokens travel, where it is the experts that do not fit. `batch_size` is that of all ranks."""
    checkpoint_activations: bool = False
    """Keep a third of the activations (half where compiled) and compute the rest again in the backward pass, half as
    much time again at long sequences, up to twice where compiled; for models and lengths that do not fit. Routes and
    products are kept: the result is the same."""
    routing_snapshots: int = Field(64, ge=0)
    """Most snapshots of which experts and heads a fixed held-out text uses, one at each evaluation, some KiB each: what
    `adaptive inspect` shows of saturation. 0 takes none."""
    tensorboard: bool = True
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """Where config and measurements go as well; each is a package of its own, all of them in the extra `trackers`. None
    sends anything off this machine unless its own environment variable says so."""

    @property
    def all_trackers(self) -> tuple[str, ...]:
        """TensorBoard among them; none where nothing is trained."""
        return () if self.steps == 0 else ("tensorboard",) * self.tensorboard + self.trackers

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.batch_size % self.micro_batches:
            raise ValueError(f"micro_batches ({self.micro_batches}) must divide batch_size ({self.batch_size})")
        if self.sequence_lengths:
            if self.sequence_length is not None:
                raise ValueError("sequence_length and sequence_lengths are both given; leave one of them out")
            if len(set(self.sequence_lengths)) < len(self.sequence_lengths):
                raise ValueError(f"sequence_lengths {list(self.sequence_lengths)} names a length twice")
        begins = self.sequence_lengths_from
        if begins and (len(begins) != len(self.sequence_lengths) or not rises_from_zero(begins)):
            raise ValueError(
                f"sequence_lengths_from is {list(begins)}; expected a share of the run for each of sequence_lengths "
                f"{list(self.sequence_lengths)}, rising from 0, as in [0, 0.3, 0.7]"
            )
        check_changes(self.batch_schedule)
        return self


def rises_from_zero(shares: tuple[float, ...]) -> bool:
    """Whether these are 0 and then ever more, below 1."""
    return shares[0] == 0 and shares[-1] < 1 and all(a < b for a, b in pairwise(shares))


class RunConfig(BaseModel):
    """Everything that makes a run; the same from `--print-config` to the checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str | None = None
    """Name of the recipe it began from."""
    parent: str | None = Field(None, pattern=NAME)
    """Name of the run that this one is to better; it stays the best where a gate of this one fails."""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    trainer: TrainerConfig = TrainerConfig()
    monitor: MonitorConfig = MonitorConfig()
    gates: GatesConfig = GatesConfig()

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
                "trainer.sequence_lengths and sources with epochs do not go together: an epoch is of one length; "
                "leave one of them out"
            )
        if self.trainer.steps is None and self.trainer.max_seconds is None and not self.data.ends:
            raise ValueError(
                "a run needs an end: set trainer.steps or trainer.max_seconds, or give every source its epochs"
            )
        if self.schedule.each_stage and (self.trainer.max_seconds is not None or not self.data.staged):
            raise ValueError(
                "schedule.each_stage needs sources with epochs and no trainer.max_seconds: a clock does not say when a "
                "stage is over; give sources their epochs and set max_seconds to null, or leave each_stage out"
            )
        self.monitor.check(
            micro_batches=self.trainer.micro_batches,
            staged=self.data.staged,
            scheduled=bool(self.trainer.batch_schedule),
            parallel=self.trainer.parallel,
        )
        if self.gates.no_worse_than_parent and self.parent is None:
            raise ValueError("gates.no_worse_than_parent needs a parent: name its run, as in --set parent=baseline")
        return self

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence, the longest where there are several."""
        lengths = self.trainer.sequence_lengths or (self.trainer.sequence_length or self.model.context_length,)
        return max(lengths)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(recipe: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a packaged recipe, or of the YAML file at a path; with `extends`, over those of another.

    Raises:
        UserError: there is no such recipe or file, it is not a YAML mapping, or it extends itself.
    """
    if recipe in extended_by:
        raise UserError(f"recipe {recipe!r} extends itself, by {', '.join(extended_by)}; leave out one `extends`")
    path = RECIPES / f"{recipe}.yaml"
    if recipe not in recipe_names():
        path = Path(recipe)
        if not path.is_file():
            near = difflib.get_close_matches(recipe, recipe_names(), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"there is no recipe {recipe!r}; {hint}Recipes are {', '.join(recipe_names())}, or the path of a "
                "YAML file"
            )
    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not YAML: {' '.join(str(error).split())}; adaptive train --print-config shows one"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path} holds {type(values).__name__}, expected sections such as `trainer:` with keys under them"
        )
    base = values.pop("extends", None)
    if base is not None:
        values = merge(read_recipe(str(base), (*extended_by, recipe)), values)
    return {**values, "recipe": path.stem}


def parse_setting(setting: str) -> dict[str, Any]:
    """`trainer.steps=100` -> {"trainer": {"steps": 100}}; the value is read as YAML.

    Raises:
        UserError: there is no `=`, or the value is not YAML.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {setting!r}: expected section.key=value, for example --set trainer.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {setting!r}: the value is not YAML: {' '.join(str(error).split())}") from error
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, section by section; lists are replaced."""
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        merged[key] = merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def make_config(base: Mapping[str, Any], overrides: Iterable[Mapping[str, Any]] = ()) -> RunConfig:
    """Validates `base` under the overrides in turn.

    Of `trainer.steps` and `trainer.max_seconds`, naming one in the overrides switches the other of the base off.

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
    try:
        return RunConfig.model_validate(merge(base, explicit))
    except ValidationError as error:
        raise UserError(explain(error, RunConfig)) from error
