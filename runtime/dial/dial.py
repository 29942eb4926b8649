"""The dial: turn a request (a share of the compute, experts, heads, layers, or thresholds) into thresholds."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...contract.errors import UserError, WrongUsageError
from ..format.manifest import Curve, Manifest
from .curve import agreeing, at_compute, compute_for_loss, compute_within
from .thresholds import Floats, Thresholds

# Each sets every threshold from the calibrated curve, so it excludes the others and all of SINGLE.
CALIBRATED = ("compute", "target_ms", "target_loss", "agreement")
SINGLE = (
    "experts",
    "heads",
    "layers_share",
    "router_top_p",
    "router_ratio",
    "head_top_p",
    "depth_threshold",
    "exit_threshold",
)
# Pairs of fields that set the same threshold.
SAME_THRESHOLD = (
    ("experts", "router_top_p"),
    ("experts", "router_ratio"),
    ("heads", "head_top_p"),
    ("layers_share", "depth_threshold"),
)


@dataclass(frozen=True, kw_only=True)
class Dial:
    """A request for how much of the model to run. A field that is None keeps the threshold of training.

    `compute`, `target_ms`, `target_loss` and `agreement` need a calibrated model (`adaptive calibrate`). Each of them
    excludes every other field.

    Raises:
        WrongUsageError: a value is outside its range, or two fields set the same threshold.
    """

    experts: float | None = None
    """Average number of experts per token and layer, 1 to num_experts, by the model's quantile table; above 0 where a
    token can have none."""
    layers_share: float | None = None
    """Share of the tokens that run each layer with a depth router, 0 to 1, by the same table."""
    router_top_p: float | None = None
    """Threshold of the experts of all layers, above 0, at most 1; 1 keeps every expert, or every candidate of a token
    in a model with `most_experts`. Excludes `experts`."""
    router_ratio: float | None = None
    """Least score of an expert, relative to that of the token's first, 0 to 1; 0 keeps every candidate. For a model
    with `most_experts`. Excludes `experts`."""
    depth_threshold: float | None = None
    """A layer runs for a token with at least this score, 0 to 1; 0 runs every layer. Excludes `layers_share`."""
    exit_threshold: float | None = None
    """A token leaves after an exit layer with a confidence above this, 0 to 1; 1 never leaves."""
    heads: float | None = None
    """Average number of heads per token and layer, shared ones included, at least 1, by the same table."""
    head_top_p: float | None = None
    """Threshold of the heads of all layers, 0 to 1; 1 keeps every head. Excludes `heads`."""
    compute: float | None = None
    """Share of the FLOPs of a dense pass to execute, above 0, at most 1; 1 runs everything."""
    target_ms: float | None = None
    """Take the most compute that was measured to need at most this many milliseconds per token, above 0."""
    target_loss: float | None = None
    """Take the least compute that was measured to lose at most this many nats per token, above 0."""
    agreement: float | None = None
    """Share of tokens, above 0 and below 1, that are chosen as if no token left early. Sets the exit thresholds alone;
    the others stay as the model was trained."""

    def __post_init__(self) -> None:
        if self.experts is not None and not (math.isfinite(self.experts) and self.experts > 0):
            raise WrongUsageError(f"found experts {self.experts}, expected more than 0, such as 1.6")
        if self.heads is not None and not (math.isfinite(self.heads) and self.heads >= 1):
            raise WrongUsageError(f"found heads {self.heads}, expected at least 1, such as 5.5")
        for name in (
            "layers_share", "router_top_p", "router_ratio", "depth_threshold", "exit_threshold", "head_top_p"
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise WrongUsageError(f"found {name} {value}, expected 0 to 1; leave it out to keep the model's own")
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
        for one, other in SAME_THRESHOLD:
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
        """Whether a field is set that only a calibrated model has."""
        return any(getattr(self, name) is not None for name in CALIBRATED)


def resolve(manifest: Manifest, dial: Dial) -> Thresholds:
    """Return the thresholds of every layer that `dial` stands for.

    Raises:
        UserError: the model has no such choice, or not at that value. No field is ignored.
    """
    thresholds = _from_curve(manifest, dial) if dial.calibrated else Thresholds.of(manifest.thresholds)
    _set_experts(manifest, dial, thresholds.router_top_p, thresholds.router_ratio)
    _set_heads(manifest, dial, thresholds.head_top_p)
    _set_depth(manifest, dial, thresholds.depth_threshold, thresholds.exit_threshold)
    return thresholds


def _from_curve(manifest: Manifest, dial: Dial) -> Thresholds:
    curve = manifest.curve
    if curve is None:
        raise UserError("this model is not calibrated; type: adaptive calibrate --model FOLDER")
    if dial.agreement is not None:
        thresholds = Thresholds.of(manifest.thresholds)
        exits = [layer.exit for layer in manifest.model.layers]
        thresholds.exit_threshold[exits] = agreeing(curve, dial.agreement).exit_threshold
        return thresholds
    return at_compute(curve, wanted_compute(curve, dial))


def wanted_compute(curve: Curve, dial: Dial) -> float:
    """Return the compute that `dial` requests, directly or by a target.

    Raises:
        UserError: no point of the curve meets the target.
    """
    if dial.target_ms is not None:
        return compute_within(curve, dial.target_ms)
    if dial.target_loss is not None:
        return compute_for_loss(curve, dial.target_loss)
    return 1.0 if dial.compute is None else dial.compute


def warnings_for(manifest: Manifest, dial: Dial, machine: dict[str, Any]) -> list[str]:
    """List warnings about a point of the curve when it runs on `machine` (see `describe`)."""
    curve = manifest.curve
    if curve is None:
        return []
    warnings = []
    least = curve.points[0]
    if dial.compute is not None and dial.compute < least.compute:
        warnings.append(f"the least compute that this model was calibrated for is {least.compute:.3g}; it runs at that")
    # a curve of an older version names no target: there was only the portable one
    measured, current = ({"target": "portable"} | described for described in (curve.machine, machine))
    differs = [key for key in ("cpu", "threads", "device", "target") if measured.get(key) != current.get(key)]
    if dial.target_ms is not None and differs:
        there = ", ".join(f"{key} {measured.get(key)}" for key in differs)
        here = ", ".join(f"{key} {current.get(key)}" for key in differs)
        warnings.append(
            f"the times were measured on another machine ({there}; here {here}); "
            "measure them here with: adaptive calibrate --model FOLDER"
        )
    return warnings


def _set_experts(manifest: Manifest, dial: Dial, top_p: Floats, ratio: Floats) -> None:
    model, table = manifest.model, manifest.dial
    routed = [i for i, layer in enumerate(model.layers) if layer.dials_experts]
    if (dial.experts is not None or dial.router_top_p is not None) and not routed:
        kinds = "/".join(sorted({layer.routing for layer in model.layers}))
        raise UserError(
            f"the number of experts is fixed in this model (routing {kinds}); leave out experts, router_top_p"
        )
    capped = [i for i in routed if model.layers[i].most_experts]
    if dial.router_ratio not in (None, 0) and not capped:
        raise UserError("this model has no most_experts, so router_top_p alone decides; leave out router_ratio")
    for i in routed:
        if dial.router_top_p is not None:
            top_p[i] = dial.router_top_p
        elif dial.experts is not None:
            layer = model.layers[i]
            top_p[i] = _for_experts(
                dial.experts, layer.least_experts, layer.candidates, table.grid, table.router_top_p[i]
            )
    for i in capped:
        if dial.router_ratio is not None:
            ratio[i] = dial.router_ratio
        elif dial.experts is not None:
            ratio[i] = 0  # the table is that of the mass alone


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


def _for_experts(wanted: float, least: int, most: int, grid: list[float], table: list[float] | None) -> float:
    if wanted > most or wanted < least:
        raise UserError(f"found experts {wanted:g}, this model has {most} per layer; give {least} to {most}")
    if wanted == most:
        return 1.0  # all of them: the table ends at the highest score that was seen
    if table is None:
        raise UserError("this model has no table for an average number of experts; set router_top_p instead")
    # The first choice is always kept, so it takes a threshold above 0 even where the table says 0.
    return max(float(np.interp((wanted - least) / (most - least), grid, table)), 1e-6)


def _for_share(wanted: float, grid: list[float], table: list[float] | None) -> float:
    if wanted == 1:
        return 0.0  # every token: the table ends at the lowest score that was seen
    if table is None:
        raise UserError("this model has no table for a share of layers; set depth_threshold instead")
    return float(np.interp(wanted, grid, table))


def _for_heads(wanted: float, least: int, most: int, grid: list[float], table: list[float] | None) -> float:
    if not least <= wanted <= most:
        raise UserError(f"found heads {wanted:g}, this model uses {least} to {most} per layer; give {least} to {most}")
    if wanted == most:
        return 1.0  # all of them: the table ends at the highest score that was seen
    if table is None:
        raise UserError("this model has no table for an average number of heads; set head_top_p instead")
    return float(np.interp((wanted - least) / (most - least), grid, table))
