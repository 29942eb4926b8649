"""All that can be set for an evaluation."""

from dataclasses import dataclass, fields
from pathlib import Path

from ...contract.errors import WrongUsageError
from ..dial import Dial

LONGEST_WINDOW = 2048
"""Tokens of a window where none is requested and the context of the model is longer."""


@dataclass(frozen=True, kw_only=True)
class TaskParams:
    """Which tasks of the lm-evaluation-harness to run, and how much of them.

    Raises:
        WrongUsageError: A number is outside its range.
    """

    tasks: tuple[str, ...]
    """Names of tasks, groups or tags."""
    include_path: Path | None = None
    """Folder with further tasks."""
    limit: float | None = None
    """Documents of each task, above 0; below 1, the share of them. None takes all."""
    num_fewshot: int | None = None
    """Examples in the prompt, at least 0; None takes that of the task."""
    apply_chat_template: bool = False
    """Whether prompts are conversations, written by the model's chat template."""
    system_instruction: str | None = None
    """The system message, or the text before the prompt."""

    def __post_init__(self) -> None:
        if self.limit is not None and not self.limit > 0:
            raise WrongUsageError(f"found limit {self.limit:g}, expected above 0; leave it out for all documents")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise WrongUsageError(f"found num_fewshot {self.num_fewshot}, expected at least 0")


@dataclass(frozen=True, kw_only=True)
class EvalParams:
    """Parameters of an evaluation.

    Raises:
        WrongUsageError: A number is outside its range.
    """

    data: tuple[Path, ...] = ()
    """Texts to score; none, and no tasks, takes the held-out text of the run."""
    dials: tuple[Dial, ...] = (Dial(),)
    """The points of the dial at which the model runs, at least one."""
    against: Path | None = None
    """Folder of the reference; None is the model itself, where `against_compute` is set."""
    against_compute: float | None = None
    """Compute of the reference, above 0, at most 1; None leaves its thresholds as trained."""
    tokens: int | None = None
    """Most tokens of each text to score, at least 1; None takes all."""
    window: int | None = None
    """Tokens of a window, at least 2; None takes the model's context, at most 2048."""
    stride: int | None = None
    """Tokens from one window to the next, at least 1, at most `window`; None takes half of it."""
    repeats: int | None = None
    """Timing: rounds; 0 measures no times. None takes 5 where there are several points, else 0."""
    prompt_tokens: int = 32
    """Timing: length of the prompt, at least 1."""
    new_tokens: int = 64
    """Timing: tokens to decode after the prompt, at least 1."""
    seed: int = 0
    """Timing: seed of the place in the text and of the order of the points, at least 0."""
    tasks: TaskParams | None = None
    """Tasks of the harness to run; None runs none."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("window", 2), ("stride", 1), ("repeats", 0), ("prompt_tokens", 1),
                            ("new_tokens", 1), ("seed", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise WrongUsageError(f"found {name} {value}, expected at least {least}")
        if self.against_compute is not None and not 0 < self.against_compute <= 1:
            raise WrongUsageError(
                f"found against_compute {self.against_compute}, expected above 0 and at most 1, such as 1"
            )

    @property
    def has_reference(self) -> bool:
        """Whether the model is compared with another one, or with itself."""
        return self.against is not None or self.against_compute is not None

    @property
    def against_dial(self) -> Dial:
        """The point of the dial at which the reference runs."""
        return Dial(compute=self.against_compute)

    @property
    def rounds(self) -> int:
        """Rounds of timing."""
        return self.repeats if self.repeats is not None else 5 * (len(self.dials) > 1)


def settings_of(dial: Dial) -> dict[str, float]:
    """Return what a dial sets."""
    values = ((one.name, getattr(dial, one.name)) for one in fields(Dial))
    return {name: value for name, value in values if value is not None}


def name_of(dial: Dial) -> str:
    """Name a point of the dial by its settings: "compute 0.7", or "default"."""
    return ", ".join(f"{name} {value:g}" for name, value in settings_of(dial).items()) or "default"
