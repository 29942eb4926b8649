"""Conditions on the finished run: the `gates:` section of its config."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ..system.section import Section


class BandGate(Section):
    """Limit on the spread of the first block's gradient norm over the logged steps of a span.

    The norm is taken before clipping.
    """

    most: float = Field(ge=1)
    """Largest allowed ratio of the norm's 95th percentile to its 5th, 1 or more."""
    start: float | None = Field(None, ge=0, le=1)
    """Start of the span as a share of the learning rate's schedule, 0 to 1; null is the end of the warm-up."""
    until_loss: float | None = Field(None, gt=0)
    """The span ends before the first logged step whose loss is below this, in nats, above 0; null is the end of the
    run."""


class AnswerGate(Section):
    """Text that the model must write under greedy decoding (always the most likely token)."""

    prompt: str = Field(min_length=1)
    """Text that the model continues, as it stands: no chat template is applied."""
    contains: str = Field(min_length=1)
    """Text that the continuation must contain; white space of any length counts as one space."""
    max_tokens: int = Field(64, ge=1, le=1_000_000)
    """Longest continuation in tokens, 1 or more."""


class GatesConfig(Section):
    """Conditions on the finished run; null is no condition. If a gate fails, the parent stays the best run."""

    max_loss: float | None = Field(None, gt=0)
    """Largest allowed loss in nats per token, above 0."""
    no_worse_than_parent: bool = False
    """Whether the loss must be at most that of the run `parent`, and that of the best run of its lineage."""
    loss: Literal["held_out", "training"] = "held_out"
    """Loss that `max_loss` and `no_worse_than_parent` compare. `held_out`: that of the final evaluation; `training`:
    the median of the last ten logged steps."""
    experts_per_token: tuple[float, float] | None = None
    """Smallest and largest allowed average of experts per token on held-out text, 0 or more: [1.5, 2.0]."""
    gradient_band: BandGate | None = None
    """Limit on the spread of the gradient norm."""
    answer: AnswerGate | None = None
    """Text that the model must write."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.experts_per_token is not None and not 0 <= self.experts_per_token[0] <= self.experts_per_token[1]:
            raise ValueError(
                f"experts_per_token is {list(self.experts_per_token)}; expected the smaller first, as in [1.5, 2.0]"
            )
        return self

    @property
    def asked(self) -> bool:
        """Whether there is any condition."""
        asked = (self.max_loss, self.experts_per_token, self.gradient_band, self.answer)
        return self.no_worse_than_parent or any(each is not None for each in asked)
