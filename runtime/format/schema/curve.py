"""The section `curve`: the calibrated dial, with the figures that were measured at each point."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .dial import ThresholdLists
from .part import Cost, Part, Positive, Share

ExpertRule = Literal["mass", "ratio"]
"""How experts are left out among the candidates of a token: those beyond a share of the mass (`router_top_p`), or those
below a share of the first one's score (`router_ratio`)."""


class Milliseconds(Part):
    """Milliseconds per token, over all rounds of a measurement."""

    median: Cost
    p5: Cost
    p95: Cost


class CurvePoint(Part):
    """One point of the calibrated dial, and its figures, measured on text that it was not chosen on."""

    compute: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    """Requested share of the dense FLOPs."""
    thresholds: ThresholdLists
    executed_share: Share
    """Measured share of the dense FLOPs."""
    loss: Cost
    """Nats per token."""
    bits_per_byte: Cost
    kl: Cost | None = None
    """Mean KL divergence of the next token's probabilities from those of the last point, in nats per token."""
    agreement: Share | None = None
    """Share of the tokens with the same most probable successor as at the last point."""
    experts_per_token: Cost
    heads_per_token: Cost
    layers_per_token: Cost
    milliseconds_per_token: Milliseconds | None = None


class ExitAgreement(Part):
    """The lowest exit threshold at which `share` of the tokens are chosen as by the whole model, by a test."""

    share: Share
    """Requested."""
    confidence: Share
    """Confidence that the share holds on texts like the one measured."""
    exit_threshold: Share
    measured: Share
    """Share of the tokens that agreed."""
    layers_per_token: Cost


class Curve(Part):
    """The calibrated dial: for each compute the thresholds of least loss, measured on held-out text."""

    text: str
    """Name of the text."""
    tokens: Positive
    """Tokens on which each figure was measured."""
    machine: dict[str, Any]
    """The machine on which times were measured; see `describe`."""
    points: list[CurvePoint]
    """In order of rising compute."""
    agreement: list[ExitAgreement] = Field(default_factory=list)
    expert_rule: ExpertRule | None = None
    """The rule that lost less, by which experts are left out; None in a model without `most_experts`."""
    rule_losses: dict[ExpertRule, Cost] = Field(default_factory=dict)
    """Mean loss over the same shares of the FLOPs by each rule, on the text that thresholds were chosen on."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        computes = [point.compute for point in self.points]
        if len(computes) < 2 or sorted(set(computes)) != computes:
            raise ValueError("compute of the points must rise strictly, over at least two points")
        executed = [point.executed_share for point in self.points]
        if sorted(executed) != executed:
            raise ValueError("executed_share of the points must not fall as compute rises")
        return self
