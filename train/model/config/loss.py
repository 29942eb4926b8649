"""Weights of the auxiliary losses: the `losses:` section of a run's config."""

from typing import Literal

from pydantic import Field

from ...system.section import Section


class LossConfig(Section):
    """Weights of the auxiliary losses, each 0 or more; 0 leaves one out.

    Losses of routers are means over the layers. Where a paper adds them up over the layers, as Switch Transformer does,
    its weight corresponds to the one here divided by the number of layers.
    """

    load_balancing_loss: float = Field(0.1, ge=0)
    """Weight of the loss that spreads tokens evenly over the experts, so that all stay in use. At 0.01, experts of the
    last of four layers were almost unused on every prose tried; at 0.1 none were, at the same held-out loss (decision
    0024)."""
    router_z_loss: float = Field(1e-4, ge=0)
    """Weight of the mean squared logsumexp of expert router logits; keeps them small."""
    router_entropy_loss: float = Field(0.0, ge=0)
    """Weight of the mean entropy of expert routing, in nats; pulls towards few experts."""
    depth_z_loss: float = Field(1e-3, ge=0)
    """Weight of the mean squared logit of depth routers; keeps their scores near 1/2."""
    head_balancing_loss: float = Field(1e-2, ge=0)
    """Weight of the loss that spreads tokens evenly over the routed heads."""
    head_z_loss: float = Field(1e-3, ge=0)
    """Weight of the mean squared logsumexp of head router logits. It keeps head routers soft: where they saturate,
    masses crowd at 1 and no threshold can separate them."""
    threshold_loss: float = Field(0.1, ge=0)
    """Weight of the squared distance from the wanted averages, where thresholds are learned and no controller holds
    them."""
    window_loss: float = Field(1e-2, ge=0)
    """Weight of the mean score (0 to 1) of learned windows; the price of looking back."""
    exit_loss: float = Field(0.3, ge=0)
    """Weight of the cross-entropy at the early exits, a weighted mean over them."""
    exit_weighting: Literal["even", "depth"] = "even"
    """Weights of the exits in `exit_loss`: `even`, all equal; `depth`, more for later exits (LayerSkip)."""
    exit_curriculum: Literal["all", "rotational", "gradual"] = "all"
    """Exits that are trained at a step: `all`; `rotational`, one per step, in turn; `gradual`, the last from the start
    and the others one after another over the first half of the run (LayerSkip)."""
    exit_router_loss: float = Field(0.1, ge=0)
    """Weight of the loss of exit routers, which learn whether the last layer would choose the same token."""
