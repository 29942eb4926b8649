"""The section `trainer` of a run's config: how long, how much at a time, on what."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..optim.batch_size import BatchChange, check_changes
from ..parallel import Parallel
from ..system.section import Section


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
    """Share of the run at which each of `sequence_lengths` begins, rising from 0: [0, 0.3, 0.7] uses one length
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
    """`background` writes checkpoints in a thread while training continues, from a copy in memory as large as a
    checkpoint; the files are the same. For models whose save takes seconds. One is written at a time; the next waits
    for it."""
    log_every: int = Field(10, ge=1, lt=2**63)
    """Steps between records in metrics.jsonl, 1 or more."""
    max_bad_steps: int = Field(10, ge=1, lt=2**63)
    """Skipped steps in a row after which the run stops, 1 or more."""
    skip_spikes: bool = True
    """Whether a step is skipped if its loss or gradient norm is far above those of the last 128. A step whose loss or
    gradient is not finite is always skipped."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Device of the run: `auto`, `cpu`, `cuda`, or `cuda:N`. `auto` takes CUDA if it works."""
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
    """Distribution of the model over ranks (`--nproc`, torchrun). `replicate`: the whole model on each, the fastest if
    it fits. `shard` (FSDP2): the rows of each matrix over the ranks, for weights and optimizer states that do not fit.
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
    """Return whether the first share is 0 and the others rise, below 1."""
    return shares[0] == 0 and shares[-1] < 1 and all(a < b for a, b in pairwise(shares))
