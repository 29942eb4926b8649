"""The config of a run: typed sections, recipes and `--set`."""

import difflib
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ...contract.errors import UserError
from ...contract.files import user_path
from ..data.config import DataConfig, TokenizerConfig
from ..model.config import ModelConfig
from ..model.loss_config import LossConfig
from ..optim.batch_size import BatchChange, check_changes
from ..optim.optimizer_config import OptimizerConfig
from ..optim.schedule_config import ScheduleConfig
from ..parallel import Parallel
from ..system.section import Section
from ..system.yaml_values import dump_yaml, load_setting, load_yaml
from .explain import explain
from .gates import GatesConfig
from .monitor import MonitorConfig

RECIPES = Path(__file__).parent.parent / "recipes"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names that a run may have."""


class TrainerConfig(Section):
    """The training loop: its length, its batches, its evaluations and saves, and the machine it uses."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights and of the order of the text, 0 to 2^63 - 1."""
    steps: int | None = Field(None, ge=0, lt=2**63)
    """Steps of the whole run, 0 or more. 0 writes a checkpoint of the initial weights; null lets the clock end it."""
    max_seconds: float | None = Field(120.0, gt=0)
    """Seconds of the whole run from its first step to its last save, above 0, earlier parts of a resumed run included;
    null sets no limit."""
    batch_size: int = Field(8, ge=1, le=2**20)
    """Sequences per step, over all ranks; 1 to 1,048,576."""
    batch_schedule: tuple[BatchChange, ...] = ()
    """Changes of the batch size in the course of a run: [{from_share: 0.3, batch_size: 16}, {from_share: 0.6, ...}]. A
    small batch learns more from each token while gradients are large; a large one wastes less once they are mostly
    noise (McCandlish et al. 2018, arXiv 1812.06162). `schedule.batch_rate` sets the effect on the learning rate."""
    micro_batches: int = Field(1, ge=1, le=2**20)
    """Parts of the batch that are computed one after the other to save memory, 1 or more; must divide `batch_size`.
    Gradients are weighted by scored tokens, so the result is that of the whole batch. A batch that grows has more parts
    of the same size."""
    sequence_length: int | None = Field(None, ge=2, lt=2**31)
    """Tokens per sequence, 2 to `model.context_length`; null takes `model.context_length`."""
    sequence_lengths: tuple[Annotated[int, Field(ge=2, lt=2**31)], ...] = ()
    """Several lengths in tokens in place of one, a different one each step. `batch_size` is that of the longest; steps
    of shorter sequences have more of them, so that the tokens of a step stay the same."""
    sequence_lengths_from: tuple[float, ...] = ()
    """Where in the run each of `sequence_lengths` begins, as shares that rise from 0: [0, 0.3, 0.7] uses one length
    after the other instead of mixing them. Short first is cheaper where long attention is expensive (Li et al. 2021,
    arXiv 2108.06084); mixing trains all lengths to the end."""
    eval_every: int = Field(100, ge=1, lt=2**63)
    """Steps between evaluations on held-out text, 1 or more."""
    eval_tokens: int = Field(8192, ge=1, lt=2**63)
    """Held-out tokens scored in each of these evaluations, 1 or more."""
    final_eval_tokens: int | None = Field(1_000_000, ge=1, lt=2**63)
    """Held-out tokens scored at the end of the run, outside its `max_seconds`, 1 or more; null scores all."""
    checkpoint_every: int = Field(250, ge=1, lt=2**63)
    """Steps between checkpoints, 1 or more; `eval_tokens` held-out tokens are scored with each."""
    keep_checkpoints: int = Field(3, ge=1, le=1_000_000)
    """Newest checkpoints that are kept, 1 or more; the one of the lowest held-out loss is kept as well."""
    save: Literal["blocking", "background"] = "blocking"
    """`background` writes checkpoints in a thread while training goes on, from a copy in memory as large as a
    checkpoint; the files are the same. For models whose save takes seconds. One is written at a time; the next waits
    for it."""
    log_every: int = Field(10, ge=1, lt=2**63)
    """Steps between records in metrics.jsonl, 1 or more."""
    max_bad_steps: int = Field(10, ge=1, lt=2**63)
    """Skipped steps in a row after which the run stops, 1 or more."""
    skip_spikes: bool = True
    """Whether a step is skipped whose loss or gradient norm is far above those of the last 128. A step whose loss or
    gradient is not finite is always skipped."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where the run computes: `auto`, `cpu`, `cuda`, or `cuda:N`. `auto` takes CUDA if it works."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the forward and backward pass. `auto` is bf16 autocast if the processor has bf16, else fp32;
    weights, optimizer and routers stay fp32."""
    threads: int | None = Field(None, ge=1, le=4096)
    """CPU threads of torch, 1 to 4096; null lets torch choose."""
    matmul: Literal["auto", "torch", "onednn"] = "auto"
    """Library of fp32 matrix products on a CPU: torch's BLAS or oneDNN, which is twice as fast on some processors.
    `auto` measures both on the run's shapes, once, in half a second. A resumed run keeps the choice, since the last
    bits differ."""
    compile: bool = False
    """Whether the model's blocks are compiled with torch.compile. Steps take about two thirds of the time after half a
    minute of compiling; the next run of the same shapes finds the machine code in the cache folder (`data.cache_dir`).
    For runs of minutes; needs a C++ compiler."""
    parallel: Parallel = "replicate"
    """How several ranks (`--nproc`, torchrun) hold the model. `replicate`: the whole model on each, the fastest if it
    fits. `shard` (FSDP2): the rows of each matrix over the ranks, for weights and optimizer states that do not fit.
    `experts`: the experts over the ranks, to which tokens are sent, for experts that do not fit."""
    checkpoint_activations: bool = False
    """Whether a third of the activations (half if compiled) is kept and the rest computed again in the backward pass.
    It takes half as much time again at long sequences, up to twice if compiled. For models and lengths that do not fit
    in memory. Routes and matrix products are kept, so the result is the same."""
    routing_snapshots: int = Field(64, ge=0, le=1_000_000)
    """Largest number of snapshots of the experts and heads that a fixed held-out text uses, one at each evaluation, a
    few KiB each: `adaptive inspect` shows saturation from them. 0 takes none."""
    tensorboard: bool = True
    """Whether measurements also go to TensorBoard files in the run's folder."""
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """Trackers that also get the config and the measurements; the extra `trackers` installs their packages. None sends
    anything off this machine unless its own environment variable says so."""

    @property
    def all_trackers(self) -> tuple[str, ...]:
        """All trackers, TensorBoard among them; none if nothing is trained."""
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
    """Tell whether the first share is 0 and the others rise, below 1."""
    return shares[0] == 0 and shares[-1] < 1 and all(a < b for a, b in pairwise(shares))


class RunConfig(Section):
    """The config of a run: the same from `--print-config` to the checkpoint."""

    recipe: str | None = None
    """Name of the recipe that the run began from; set by the program."""
    parent: str | None = Field(None, pattern=NAME)
    """Name of the run that this one should improve on. If a gate of this run fails, the parent stays the best."""
    data: DataConfig = DataConfig()
    """The text: sources, held-out part, packing, augmentation."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Kind and size of the vocabulary."""
    model: ModelConfig = ModelConfig()
    """Shape of the model and its routing."""
    losses: LossConfig = LossConfig()
    """Weights of the auxiliary losses."""
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
                "trainer.sequence_lengths and sources with epochs do not go together: an epoch is of one length; "
                "leave one of them out"
            )
        if self.trainer.steps is None and self.trainer.max_seconds is None and not self.data.ends:
            raise ValueError(
                "a run needs an end: set trainer.steps or trainer.max_seconds, or give every source its epochs"
            )
        if self.schedule.each_stage and (self.trainer.max_seconds is not None or not self.data.staged):
            raise ValueError(
                "schedule.each_stage needs sources with epochs and no trainer.max_seconds, since a clock does not tell "
                "when a stage ends; give sources their epochs and set max_seconds to null, or leave each_stage out"
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
            f"{path} cannot be read as YAML: {error}. A config looks as adaptive train --print-config prints it"
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

    Naming one of `trainer.steps` and `trainer.max_seconds` in the overrides switches the other off in the base.

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
    sections = merge(base, explicit)
    check_numbers(sections)
    try:
        return RunConfig.model_validate(sections)
    except ValidationError as error:
        raise UserError(explain(error, RunConfig)) from error


def check_numbers(value: Any, field: str = "") -> None:
    """Check that every number is finite and every integer fits in 64 bits, whatever else its field allows.

    Raises:
        UserError: one does not; its field is named.
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
