"""The `ffn.zero_experts` section of a model's config."""

from typing import Literal

from pydantic import Field

from ...system.section import Section

ZeroKind = Literal["zero", "copy", "constant"]


class ZeroExpertsConfig(Section):
    """Zero-computation experts of each layer with experts, by kind; without any, none are built."""

    zeros: int = Field(0, ge=0, le=1024)
    """Experts whose output is 0: a token that takes one does without."""
    copies: int = Field(0, ge=0, le=1024)
    """Experts whose output is their input."""
    constants: int = Field(0, ge=0, le=1024)
    """Experts whose output is a mean of their input and of a learned vector, weighted by the token."""
    tau: float = Field(0.75, gt=0, le=10)
    """Weight of a zero-computation expert in the load-balancing loss, relative to an expert, greater than 0: below 1,
    more tokens go to them than to experts."""

    @property
    def total(self) -> int:
        """Number of zero-computation experts of a layer."""
        return self.zeros + self.copies + self.constants

    @property
    def kinds(self) -> list[ZeroKind]:
        """The kind of each zero-computation expert, in the order of the router."""
        numbers: dict[ZeroKind, int] = {"zero": self.zeros, "copy": self.copies, "constant": self.constants}
        return [kind for kind, number in numbers.items() for _ in range(number)]
