"""The dial: what a person asks for (experts, a share of the layers, or thresholds) into one threshold per layer."""

import math
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from .errors import UserError, WrongUsageError
from .manifest import Manifest

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Dial:
    """How much of the model to run; what is None stays as the model was trained.

    experts: wanted average of experts per token and layer, 1 to num_experts, through the model's quantile table.
    layers_share: wanted share of the tokens that run each layer with a depth router, 0 to 1, through the same table.
    router_top_p: expert threshold of all layers, above 0, at most 1; 1 keeps every expert. Excludes `experts`.
    depth_threshold: a layer runs for a token that scores at least this, 0 to 1; 0 runs all. Excludes `layers_share`.
    exit_threshold: a token leaves after an exit layer that is surer than this, 0 to 1; 1 never leaves.
    """

    experts: float | None = None
    layers_share: float | None = None
    router_top_p: float | None = None
    depth_threshold: float | None = None
    exit_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.experts is not None and not (math.isfinite(self.experts) and self.experts >= 1):
            raise WrongUsageError(f"found experts {self.experts}, expected at least 1, such as 1.6")
        for name in ("layers_share", "router_top_p", "depth_threshold", "exit_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise WrongUsageError(f"found {name} {value}, expected 0 to 1; leave it out for the model's own")
        if self.router_top_p == 0:
            raise WrongUsageError(
                "found router_top_p 0, expected more than 0; a tiny value keeps only the first expert"
            )
        if self.experts is not None and self.router_top_p is not None:
            raise WrongUsageError("found both experts and router_top_p, which set the same threshold; give one of them")
        if self.layers_share is not None and self.depth_threshold is not None:
            raise WrongUsageError(
                "found both layers_share and depth_threshold, which set the same threshold; give one of them"
            )


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of one run, each (L,) float32."""

    router_top_p: Floats
    depth_threshold: Floats
    exit_threshold: Floats
    head_top_p: Floats = field(default_factory=lambda: np.zeros(0, np.float32))  # empty: 1 in every layer

    def __post_init__(self) -> None:
        if not len(self.head_top_p):
            object.__setattr__(self, "head_top_p", np.ones_like(self.router_top_p))

    def as_lists(self) -> dict[str, list[float]]:
        """For JSON: of each the shortest decimal that reads back as the same float32 (a level near 1 is not 1)."""
        return {one.name: [float(str(value)) for value in getattr(self, one.name)] for one in fields(self)}


def resolve(manifest: Manifest, dial: Dial) -> Thresholds:
    """One threshold per layer. Raises UserError where the model has no such choice: nothing asked for is ignored."""
    model, table = manifest.model, manifest.dial
    top_p = np.array(manifest.thresholds.router_top_p, dtype=np.float32)
    depth = np.array(manifest.thresholds.depth_threshold, dtype=np.float32)
    leave = np.array(manifest.thresholds.exit_threshold, dtype=np.float32)

    routed = [i for i, layer in enumerate(model.layers) if layer.routing == "top_p"]
    if (dial.experts is not None or dial.router_top_p is not None) and not routed:
        kinds = "/".join(sorted({layer.routing for layer in model.layers}))
        raise UserError(
            f"the number of experts is fixed in this model (routing {kinds}); leave out experts, router_top_p"
        )
    for i in routed:
        if dial.router_top_p is not None:
            top_p[i] = dial.router_top_p
        elif dial.experts is not None:
            top_p[i] = _for_experts(dial.experts, model.layers[i].num_experts, table.grid, table.router_top_p[i])

    routers = [i for i, layer in enumerate(model.layers) if layer.depth_router]
    if (dial.layers_share not in (None, 1) or dial.depth_threshold not in (None, 0)) and not routers:
        raise UserError("this model has no depth routers, every layer runs; leave out layers_share and depth_threshold")
    for i in routers:
        if dial.depth_threshold is not None:
            depth[i] = dial.depth_threshold
        elif dial.layers_share is not None:
            depth[i] = _for_share(dial.layers_share, table.grid, table.depth_threshold[i])

    exits = [i for i, layer in enumerate(model.layers) if layer.exit]
    if dial.exit_threshold not in (None, 1) and not exits:
        raise UserError("this model has no exit layers, no token can leave early; leave out exit_threshold")
    for i in exits:
        if dial.exit_threshold is not None:
            leave[i] = dial.exit_threshold
    return Thresholds(top_p, depth, leave)


def _for_experts(wanted: float, num_experts: int, grid: list[float], table: list[float] | None) -> float:
    if wanted > num_experts:
        raise UserError(f"found experts {wanted:g}, this model has {num_experts} per layer; give 1 to {num_experts}")
    if wanted == num_experts:
        return 1.0  # all of them, whatever the table saw
    if table is None:
        raise UserError("this model has no table for a wanted number of experts; set router_top_p instead")
    # The first expert is always kept, so it takes a threshold above 0 even where the table says 0.
    return max(float(np.interp((wanted - 1) / (num_experts - 1), grid, table)), 1e-6)


def _for_share(wanted: float, grid: list[float], table: list[float] | None) -> float:
    if wanted == 1:
        return 0.0  # every token, whatever the table saw
    if table is None:
        raise UserError("this model has no table for a wanted share of layers; set depth_threshold instead")
    return float(np.interp(wanted, grid, table))
