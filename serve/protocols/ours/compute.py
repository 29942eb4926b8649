"""Our fields about compute: how much a request may use, and how much its text used."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from ....runtime.execution.usage.total import Total
from ....runtime.format.manifest import Manifest
from ....runtime.generation.request import Token
from ...errors import BadRequestError
from ...scheduler.job import AutoCompute, EndEvent
from ...settings import Settings
from ..body import Body

Share = Annotated[float, Field(gt=0, le=1)]
DIALS = (
    "target_ms", "target_loss", "agreement", "experts", "heads", "layers_share", "router_top_p", "router_ratio",
    "head_top_p", "depth_threshold", "exit_threshold",
)  # fmt: skip

ADDED_AT_ONCE = 32
"""Tokens whose compute is added up in one call."""


class ComputeFields(Body):
    """Fields of a request about compute; with official clients they go into `extra_body`."""

    compute: Share | Literal["auto"] | None = None
    """Share of the FLOPs of a dense pass to execute, above 0 to 1, or "auto": less while the server is busy."""
    least_compute: Share | None = None
    """The lowest `compute` that "auto" may take."""
    target_ms: float | None = None
    """The most compute that was measured to need at most this many milliseconds per token."""
    target_loss: float | None = None
    """The least compute that was measured to lose at most this many nats per token."""
    agreement: float | None = None
    """Share of tokens that are chosen as if no token left early."""
    experts: float | None = None
    """Average number of experts per token and layer."""
    heads: float | None = None
    """Average number of heads per token and layer."""
    layers_share: float | None = None
    """Share of the tokens that run each layer with a depth router."""
    router_top_p: float | None = None
    """Threshold of the experts of all layers."""
    router_ratio: float | None = None
    """Least score of an expert, relative to that of the token's first."""
    head_top_p: float | None = None
    """Threshold of the heads of all layers."""
    depth_threshold: float | None = None
    """Threshold of the depth routers."""
    exit_threshold: float | None = None
    """Threshold of the exits."""
    compute_details: bool = False
    """Whether to report the compute of every token, under `choices[i].compute`."""

    def dial(
        self, named: float | None, settings: Settings, manifest: Manifest
    ) -> tuple[dict[str, Any], AutoCompute | None]:
        """Return the dial's fields of `Params`, and whether the server may lower it.

        Args:
            named: The dial of the model's name.
            settings: Those of the server.
            manifest: The model.

        Raises:
            BadRequestError: Fields contradict each other, or the model is not calibrated.
        """
        given = {name: value for name in DIALS if (value := getattr(self, name)) is not None}
        if self.least_compute is not None and self.compute != "auto":
            raise BadRequestError('found least_compute, expected compute "auto" beside it', param="least_compute")
        if self.compute == "auto":
            if given:
                raise BadRequestError(
                    f'found compute "auto" and {next(iter(given))}, which set the same thresholds; give one of them',
                    param="compute",
                )
            if manifest.curve is None:
                raise BadRequestError(
                    'found compute "auto", this model is not calibrated, so it has no dial; leave compute out',
                    param="compute",
                )
            least = self.least_compute or settings.auto_compute or manifest.curve.points[0].compute
            return {}, AutoCompute(min(least, 1.0))
        if self.compute is not None:
            return {"compute": self.compute, **given}, None
        if given:
            return given, None
        if named is not None:
            return {"compute": named}, None
        return {}, None  # the scheduler puts in `settings.auto_compute`


class ComputeUsage(Body):
    """The compute of all new tokens of an answer."""

    share: float
    """Executed over dense FLOPs."""
    experts_per_token: float
    """Mean over the tokens and the layers that they ran."""
    heads_per_token: float
    """Mean over the tokens and the layers that they ran."""
    layers_per_token: float
    """Mean of the layers run."""
    milliseconds_per_token: float
    """Mean of the new tokens; a first one, which waits for the prompt, counts only where it is the only one."""
    dial: float | None
    """The `compute` in force; None where thresholds were given or those of training hold."""
    drafted: int
    """Tokens that were guessed ahead."""
    accepted: int
    """How many of them were right."""


@dataclass
class ComputeSum:
    """The compute of tokens, added up; that of several texts can be joined."""

    total: Total = field(default_factory=Total)
    first_seconds: float = 0.0
    seconds: float = 0.0
    """Of all tokens but the first of each text."""
    firsts: int = 0
    ends: list[EndEvent] = field(default_factory=list)
    waiting: list[Token] = field(default_factory=list)
    """Tokens whose routes are not added yet."""

    def add(self, token: Token) -> None:
        """Add a token of a text."""
        if self.firsts:
            self.seconds += token.seconds
        else:
            self.first_seconds, self.firsts = token.seconds, 1
        self.waiting.append(token)
        if len(self.waiting) >= ADDED_AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Add up the routes of the tokens that wait for it, together, which costs about as much as for one."""
        if self.waiting:
            self.total += self.waiting[0].meter.total([token.routes for token in self.waiting])
            self.waiting.clear()

    @classmethod
    def joined(cls, sums: "Iterable[ComputeSum]") -> "ComputeSum":
        """Return the sum of several texts."""
        joined = cls()
        for one in sums:
            one.settle()
            joined.total += one.total
            joined.first_seconds += one.first_seconds
            joined.seconds += one.seconds
            joined.firsts += one.firsts
            joined.ends += one.ends
        return joined

    def usage(self) -> ComputeUsage:
        """Return the means."""
        self.settle()
        later = self.total.tokens - self.firsts
        mean_seconds = self.seconds / later if later else self.first_seconds / max(self.firsts, 1)
        return ComputeUsage(
            share=round(self.total.share, 5),
            **self.total.means(),
            milliseconds_per_token=round(mean_seconds * 1000, 4),
            dial=self.ends[-1].dial if self.ends else None,
            drafted=sum(end.drafted for end in self.ends),
            accepted=sum(end.accepted for end in self.ends),
        )
