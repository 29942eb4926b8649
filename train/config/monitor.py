"""The `monitor:` section of a run's config."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ..system.section import Section

Band = tuple[float | None, float | None]
"""The least and the most; null bounds nothing."""


class MonitorConfig(Section):
    """What is out of the ordinary, and what is done about it. Figures are taken in the steps that are logged.

    An alarm is raised once, when a figure has been outside its band for `patience` logged steps in a row after the
    warm-up, and may be raised again once it was back inside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    patience: int = Field(3, ge=1)
    """Logged steps in a row outside a band that make an alarm, and inside that end an act."""
    grad_norm: Band = (1e-6, 100.0)
    """Of each layer's gradient before clipping. Narrow it where you know what a healthy run of yours has."""
    update_ratio: Band = (1e-7, 0.5)
    """Of |step| / |weights| of each layer: 1e-3 is usual for AdamW, 1e-2 for Muon at its peak rate. The least falls
    with the schedule of the learning rate."""
    activation_rms: Band = (1e-4, 1000.0)
    """Of the residual stream after each block: past some thousands bf16 has no digits left for what a block adds."""
    router_entropy: float = Field(0.3, ge=0, le=1)
    """The least entropy of a router's mean distribution, as a share of that of an even one: 0 is one expert for all."""
    router_token_entropy: float = Field(0.0, ge=0, le=1)
    """The least mean entropy of a token's own distribution. Sure is good, so nothing is asked; 0.01 finds routers that
    have saturated and learn no more."""
    router_load: float = Field(0.02, ge=0, le=1)
    """The least that an expert or a routed head is used, as a share of an even load: below it is dead. Tokens of the
    last `patience` logged steps together count, since in one small batch some expert is idle by chance."""
    act: Literal["none", "lr", "batch"] = "none"
    """`lr`: a layer whose gradient or step is above its band learns at `act_factor` of its rate, all layers where
    activations are; the rate rises again by the same steps once it is back. For runs that nobody watches. `batch`:
    twice as many sequences a step when the noise scale of the gradient (McCandlish et al. 2018, arXiv 1812.06162) is
    above `noise_factor` times the batch; needs `trainer.micro_batches` of 2 or more. For long runs with small batches.
    """
    act_factor: float = Field(0.5, gt=0, lt=1)
    least_rate: float = Field(0.1, gt=0, le=1)
    """Of its usual rate that a layer keeps under `lr`."""
    noise_factor: float = Field(2.0, gt=0)
    most_batch_size: int | None = Field(None, ge=1)
    """Under `batch`; null is eight times `trainer.batch_size`."""
    router_act: Literal["none", "balance"] = "none"
    """`balance`: after an alarm of a router the losses that spread it weigh at least `router_balance`, until the figure
    was back for `router_steps` steps. For runs that go without these losses, or with weak ones, to leave routers free.
    """
    router_balance: float = Field(0.4, gt=0)
    """Under `balance`: four times what `losses.load_balancing_loss` is by default."""
    router_steps: int = Field(100, ge=1)

    @model_validator(mode="after")
    def _bands_hold_something(self) -> Self:
        for name in ("grad_norm", "update_ratio", "activation_rms"):
            least, most = getattr(self, name)
            if least is not None and most is not None and least >= most:
                raise ValueError(f"{name} is {[least, most]}; expected the least first, as in [0.001, 10], or null")
        return self

    def check(self, *, micro_batches: int, staged: bool, scheduled: bool, parallel: str) -> None:
        """Raises ValueError where the acts do not go with the rest of a config."""
        if self.act != "batch":
            return
        if micro_batches < 2:
            raise ValueError(
                f"monitor.act batch takes the noise from the parts of a batch, but trainer.micro_batches is "
                f"{micro_batches}; set it to 2 or more"
            )
        if parallel != "replicate":
            raise ValueError(
                f"monitor.act batch takes the noise from whole gradients, but trainer.parallel is {parallel}; set it "
                "to replicate"
            )
        if staged or scheduled:
            other = "sources with epochs say how many steps there are" if staged else "trainer.batch_schedule is set"
            raise ValueError(f"monitor.act batch chooses the batch, but {other}; leave one of them out")
