"""What must hold at the end of a run: the `gates:` section of its config."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ..system.section import Section


class Finite(Section):
    """A section whose numbers are finite: a checkpoint holds them as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BandGate(Finite):
    """How far the gradient of the first block may spread over the logged steps of a span; its norm is taken before
    clipping."""

    most: float = Field(ge=1)
    """The 95th percentile of the norm is at most so many times the 5th."""
    start: float | None = Field(None, ge=0, le=1)
    """Where the span begins, as a share of the learning rate's schedule; null is where its warm-up ends."""
    until_loss: float | None = Field(None, gt=0)
    """The span ends before the first logged step whose loss is below this; null goes on to the end of the run."""


class AnswerGate(Finite):
    """What the model must say when it always takes the likeliest token."""

    prompt: str = Field(min_length=1)
    """The text it goes on from, just as it stands here: no chat template is put around it."""
    contains: str = Field(min_length=1)
    """What must stand in the continuation; white space of any length counts as one space."""
    max_tokens: int = Field(64, ge=1)


class GatesConfig(Finite):
    """What must hold at the end of a run, where it is not null. Where a gate fails, the parent stays the best."""

    max_loss: float | None = Field(None, gt=0)
    no_worse_than_parent: bool = False
    """Whether the loss must be at most that of the run `parent`, and of the run that stands as the best there."""
    loss: Literal["held_out", "training"] = "held_out"
    """Which loss these two mean: that of the final evaluation, or the median of the last ten logged steps."""
    experts_per_token: tuple[float, float] | None = None
    """The least and the most, as measured on held-out text: [1.5, 2.0]."""
    gradient_band: BandGate | None = None
    answer: AnswerGate | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.experts_per_token is not None and not 0 <= self.experts_per_token[0] <= self.experts_per_token[1]:
            raise ValueError(
                f"experts_per_token is {list(self.experts_per_token)}; expected the least first, as in [1.5, 2.0]"
            )
        return self

    @property
    def asked(self) -> bool:
        """Whether anything must hold."""
        asked = (self.max_loss, self.experts_per_token, self.gradient_band, self.answer)
        return self.no_worse_than_parent or any(each is not None for each in asked)
