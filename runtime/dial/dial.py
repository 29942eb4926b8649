"""The dial: what a person asks for (a share of the compute, experts, heads, layers, or thresholds) into thresholds."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...contract.errors import UserError, WrongUsageError
from ..format.manifest import Curve, Manifest
from .curve import agreeing, at_compute, compute_for_loss, compute_within
from .thresholds import Floats, Thresholds

__all__ = ["Dial", "Floats", "Thresholds", "remarks", "resolve"]

# Each sets every threshold from the calibrated curve, so none goes with another, nor with a single threshold.
CALIBRATED = ("compute", "target_ms", "target_loss", "agreement")
SINGLE = (
    "experts",
    "heads",
    "layers_share",
    "router_top_p",
    "head_top_p",
    "depth_threshold",
    "exit_threshold",
)
# Two ways to set one threshold.
SAME = (("experts", "router_top_p"), ("heads", "head_top_p"), ("layers_share", "depth_threshold"))


@dataclass(frozen=True, kw_only=True)
class Dial:
    """How much of the model to run; what is None stays as the model was trained.

    experts: wanted average of experts per token and layer, 1 to num_experts, through the model's quantile table.
    layers_share: wanted share of the tokens that run each layer with a depth router, 0 to 1, through the same table.
    router_top_p: expert threshold of all layers, above 0, at most 1; 1 keeps every expert. Excludes `experts`.
    depth_threshold: a layer runs for a token that scores at least this, 0 to 1; 0 runs all. Excludes `layers_share`.
    exit_threshold: a token leaves after an exit layer that is surer than this, 0 to 1; 1 never leaves.
    heads: wanted average of heads per token and layer, shared ones included, through the same table.
    head_top_p: head threshold of all layers, 0 to 1; 1 uses every head. Excludes `heads`.

    Of a calibrated model (`adaptive calibrate`), one of these in place of all of the above:

    compute: share of the FLOPs of a dense pass, above 0, at most 1; 1 runs everything.
    target_ms: the most compute that was measured to take at most this many milliseconds per token.
    target_loss: the least compute that was measured to lose at most this many nats per token.
    agreement: share of tokens, below 1, that choose as if none left early; the other thresholds stay the model's own.
    """

    experts: float | None = None
    layers_share: float | None = None
    router_top_p: float | None = None
    depth_threshold: float | None = None
    exit_threshold: float | None = None
    heads: float | None = None
    head_top_p: float | None = None
    compute: float | None = None
    target_ms: float | None = None
    target_loss: float | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        if self.experts is not None and not (math.isfinite(self.experts) and self.experts >= 1):
            raise WrongUsageError(f"found experts {self.experts}, expected at least 1, such as 1.6")
        if self.heads is not None and not (math.isfinite(self.heads) and self.heads >= 1):
            raise WrongUsageError(f"found heads {self.heads}, expected at least 1, such as 5.5")
        for name in ("layers_share", "router_top_p", "depth_threshold", "exit_threshold", "head_top_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise WrongUsageError(f"found {name} {value}, expected 0 to 1; leave it out for the model's own")
        if self.router_top_p == 0:
            raise WrongUsageError(
                "found router_top_p 0, expected more than 0; a tiny value keeps only the first expert"
            )
        if self.compute is not None and not 0 < self.compute <= 1:
            raise WrongUsageError(f"found compute {self.compute}, expected above 0 and at most 1, such as 0.5")
        for name in ("target_ms", "target_loss"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise WrongUsageError(f"found {name} {value}, expected a number above 0")
        if self.agreement is not None and not 0 < self.agreement < 1:
            raise WrongUsageError(f"found agreement {self.agreement}, expected above 0 and below 1, such as 0.99")
        for one, other in SAME:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise WrongUsageError(f"found both {one} and {other}, which set the same threshold; give one of them")
        calibrated = [name for name in CALIBRATED if getattr(self, name) is not None]
        also = [
            name for name in (*CALIBRATED, *SINGLE) if getattr(self, name) is not None and name not in calibrated[:1]
        ]
        if calibrated and also:
            raise WrongUsageError(
                f"found both {calibrated[0]} and {also[0]}, which set the same thresholds; give one of them"
            )

    @property
    def calibrated(self) -> bool:
        """Whether it asks for something that only a calibrated model has."""
        return any(getattr(self, name) is not None for name in CALIBRATED)


def resolve(manifest: Manifest, dial: Dial) -> Thresholds:
    """One threshold per layer. Raises UserError where the model has no such choice: nothing asked for is ignored."""
    found = _from_curve(manifest, dial) if dial.calibrated else Thresholds.of(manifest.thresholds)
    _set_experts(manifest, dial, found.router_top_p)
    _set_heads(manifest, dial, found.head_top_p)
    _set_depth(manifest, dial, found.depth_threshold, found.exit_threshold)
    return found


def _from_curve(manifest: Manifest, dial: Dial) -> Thresholds:
    curve = manifest.curve
    if curve is None:
        raise UserError("this model is not calibrated; type: adaptive calibrate --model FOLDER")
    if dial.agreement is not None:
        found = Thresholds.of(manifest.thresholds)
        leave = agreeing(curve, dial.agreement).exit_threshold
        found.exit_threshold[[layer.exit for layer in manifest.model.layers]] = leave
        return found
    return at_compute(curve, wanted_compute(curve, dial))


def wanted_compute(curve: Curve, dial: Dial) -> float:
    """The compute that `dial` asks for, directly or by a target. Raises UserError for a target that no point meets."""
    if dial.target_ms is not None:
        return compute_within(curve, dial.target_ms)
    if dial.target_loss is not None:
        return compute_for_loss(curve, dial.target_loss)
    return 1.0 if dial.compute is None else dial.compute


def remarks(manifest: Manifest, dial: Dial, machine: dict[str, Any]) -> list[str]:
    """What a person should know of a point that `resolve` found on the curve, run on `machine`."""
    curve = manifest.curve
    if curve is None:
        return []
    found = []
    least = curve.points[0]
    if dial.compute is not None and dial.compute < least.compute:
        found.append(f"the least compute that this model was calibrated for is {least.compute:.3g}; it runs at that")
    differs = [key for key in ("cpu", "threads", "device") if curve.machine.get(key) != machine.get(key)]
    if dial.target_ms is not None and differs:
        there = ", ".join(f"{key} {curve.machine.get(key)}" for key in differs)
        here = ", ".join(f"{key} {machine.get(key)}" for key in differs)
        found.append(f"the times were measured on another machine ({there}; here {here}); "
                     "measure them here with: adaptive calibrate --model FOLDER")  # fmt: skip
    return found


def _set_experts(manifest: Manifest, dial: Dial, top_p: Floats) -> None:
    model, table = manifest.model, manifest.dial
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


def _set_heads(manifest: Manifest, dial: Dial, head_top_p: Floats) -> None:
    model = manifest.model
    table = manifest.dial.head_top_p or [None] * model.num_layers
    routed = [i for i, layer in enumerate(model.layers) if layer.head_routing in ("top_p", "adaptive")]
    if (dial.heads is not None or dial.head_top_p is not None) and not routed:
        kinds = "/".join(sorted({layer.head_routing for layer in model.layers}))
        raise UserError(f"the number of heads is fixed in this model (routing {kinds}); leave out heads, head_top_p")
    for i in routed:
        if dial.head_top_p is not None:
            head_top_p[i] = dial.head_top_p
        elif dial.heads is not None:
            least, most = model.layers[i].head_range(model.num_heads)
            head_top_p[i] = _for_heads(dial.heads, least, most, manifest.dial.grid, table[i])


def _set_depth(manifest: Manifest, dial: Dial, depth: Floats, leave: Floats) -> None:
    model, table = manifest.model, manifest.dial
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


def _for_heads(wanted: float, least: int, most: int, grid: list[float], table: list[float] | None) -> float:
    if not least <= wanted <= most:
        raise UserError(f"found heads {wanted:g}, this model uses {least} to {most} per layer; give a number of those")
    if wanted == most:
        return 1.0  # all of them, whatever the table saw
    if table is None:
        raise UserError("this model has no table for a wanted number of heads; set head_top_p instead")
    return float(np.interp((wanted - least) / (most - least), grid, table))
