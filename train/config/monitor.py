"""The `monitor:` section of a run's config."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ..system.section import Section

Band = tuple[float | None, float | None]
"""Lower and upper limit; null is no limit."""


class MonitorConfig(Section):
    """Bands of healthy figures, and what is done outside them. Figures are measured in the logged steps.

    An alarm is raised once, when a figure has been outside its band for `patience` logged steps in a row after the
    warm-up. It can be raised again once the figure was back inside.
    """

    patience: int = Field(3, ge=1, lt=2**63)
    """Logged steps in a row outside a band that raise an alarm, and inside it that end an act; 1 or more."""
    grad_norm: Band = (1e-6, 100.0)
    """Band of the gradient norm of each layer before clipping. Narrow it if you know the healthy range of your runs."""
    update_ratio: Band = (1e-7, 0.5)
    """Band of |step| / |weights| of each layer. Usual at the peak rate: 1e-3 for AdamW, 1e-2 for Muon. The lower edge
    falls with the schedule of the learning rate."""
    activation_rms: Band = (1e-4, 1000.0)
    """Band of the root mean square of the residual stream after each block. Above a few thousand, bf16 has no digits
    left for what a block adds."""
    router_entropy: float = Field(0.3, ge=0, le=1)
    """Lower limit of the entropy of a router's mean distribution, as a share of that of a uniform one, 0 to 1. At 0 one
    expert serves all tokens."""
    router_token_entropy: float = Field(0.0, ge=0, le=1)
    """Lower limit of the mean entropy of a token's own distribution, as a share of that of a uniform one, 0 to 1. A
    confident router is good, so the default asks for nothing; 0.01 finds routers that are saturated and do not learn
    any more."""
    router_load: float = Field(0.02, ge=0, le=1)
    """Lower limit of the use of an expert or a routed head, as a share of an even load, 0 to 1; below it the expert
    counts as dead. Tokens of the last `patience` logged steps are counted together, since some expert is idle in one
    small batch by chance."""
    act: Literal["none", "lr", "batch"] = "none"
    """Changes that an alarm makes. `lr`: a layer whose gradient or step is above its band learns at `act_factor` of its
    rate, all layers if activations are above theirs; the rate rises again in the same steps once the figure is back.
    For unattended runs. `batch`: doubles the sequences of a step when the noise scale of the gradient (McCandlish et
    al. 2018, arXiv 1812.06162) is above `noise_factor` times the batch; needs `trainer.micro_batches` of 2 or more. For
    long runs with small batches."""
    act_factor: float = Field(0.5, gt=0, lt=1)
    """Factor on a layer's rate at each alarm under `lr`, above 0 and below 1."""
    least_rate: float = Field(0.1, gt=0, le=1)
    """Smallest share of its usual rate that a layer keeps under `lr`, above 0 to 1."""
    noise_factor: float = Field(2.0, gt=0)
    """Noise scale, as a multiple of the batch size, above which `batch` doubles the batch; above 0."""
    most_batch_size: int | None = Field(None, ge=1, le=2**20)
    """Largest batch size under `batch`, in sequences, 1 to 1,048,576; null is eight times `trainer.batch_size`."""
    router_act: Literal["none", "balance"] = "none"
    """`balance`: after an alarm of a router, the losses that spread it have a weight of at least `router_balance` until
    the figure has been back for `router_steps` steps. For runs with weak balancing losses or none, which leave routers
    free."""
    router_balance: float = Field(0.4, gt=0)
    """Smallest weight of the balancing losses under `balance`, above 0."""
    router_steps: int = Field(100, ge=1, lt=2**63)
    """Steps that a router's figure must be back in its band before `balance` ends, 1 or more."""

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> Self:
        for name in ("grad_norm", "update_ratio", "activation_rms"):
            lower, upper = getattr(self, name)
            if lower is not None and upper is not None and lower >= upper:
                raise ValueError(
                    f"{name} is {[lower, upper]}; expected the lower limit first, as in [0.001, 10], or null"
                )
        return self

    def check(self, *, micro_batches: int, staged: bool, scheduled: bool, parallel: str) -> None:
        """Check that `act` fits the rest of the config.

        Raises:
            ValueError: it does not.
        """
        if self.act != "batch":
            return
        if micro_batches < 2:
            raise ValueError(
                f"monitor.act batch measures the noise from the parts of a batch, but trainer.micro_batches is "
                f"{micro_batches}; set it to 2 or more"
            )
        if parallel != "replicate":
            raise ValueError(
                f"monitor.act batch measures the noise from whole gradients, but trainer.parallel is {parallel}; "
                "set it to replicate"
            )
        if staged or scheduled:
            other = "sources with epochs set the number of steps" if staged else "trainer.batch_schedule is set"
            raise ValueError(f"monitor.act batch changes the batch size, but {other}; leave one of them out")
