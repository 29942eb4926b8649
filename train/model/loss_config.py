"""Weights of the auxiliary losses: the `losses:` section of a run's config."""

from typing import Literal

from pydantic import Field

from ..system.section import Section


class LossConfig(Section):
    """Weights of the auxiliary losses; 0 leaves one out.

    Those of routers are means over the layers: where a paper adds them up layer by layer, as Switch Transformer does,
    its weight is the one here divided by the number of layers.
    """

    load_balancing_loss: float = Field(1e-2, ge=0)
    router_z_loss: float = Field(1e-4, ge=0)
    router_entropy_loss: float = Field(0.0, ge=0)
    depth_z_loss: float = Field(1e-3, ge=0)
    head_balancing_loss: float = Field(1e-2, ge=0)
    head_z_loss: float = Field(1e-3, ge=0)
    """Keeps head routers soft; where they saturate, masses crowd at 1 and no threshold tells them apart."""
    threshold_loss: float = Field(0.1, ge=0)
    """Holds the averages asked for where thresholds are learned and no controller does."""
    window_loss: float = Field(1e-2, ge=0)
    """On the mean score of learned windows: what looking back must earn."""
    exit_loss: float = Field(0.3, ge=0)
    exit_weighting: Literal["even", "depth"] = "even"
    """`depth` weighs an exit by the layers below it (LayerSkip); `even` all alike."""
    exit_curriculum: Literal["all", "rotational", "gradual"] = "all"
    """`rotational`: one exit a step, in turn; `gradual`: the last from the start, the others one after the other over
    the first half of the run (LayerSkip)."""
    exit_router_loss: float = Field(0.1, ge=0)
