"""A point of the calibrated curve, by what a person asks: a share of the compute, a time, a loss, or agreement."""

from bisect import bisect_left
from dataclasses import fields

import numpy as np

from ...contract.errors import UserError
from ..format.schema import Curve, ExitAgreement
from .thresholds import Floats, Thresholds


def at_compute(curve: Curve, compute: float) -> Thresholds:
    """Thresholds for `compute`, a share of the dense FLOPs; between two points those between theirs.

    Along a curve each threshold moves one way only, so what lies between two points costs no more than the one and no
    less than the other. Exits that are closed at the point above stand as at the point below: barely open, they would
    cost their checks and save nothing. Below the first point it is the first: nothing cheaper was found.
    """
    known = [point.compute for point in curve.points]
    above = min(bisect_left(known, compute), len(known) - 1)
    high = Thresholds.of(curve.points[above].thresholds)
    if above == 0 or compute >= known[above]:
        return high
    low = Thresholds.of(curve.points[above - 1].thresholds)
    return between(low, high, (compute - known[above - 1]) / (known[above] - known[above - 1]))


def between(low: Thresholds, high: Thresholds, share: float) -> Thresholds:
    """Thresholds `share` of the way from `low` to `high`, above 0 and below 1; see `at_compute`."""

    def middle(name: str) -> Floats:
        a, b = getattr(low, name), getattr(high, name)
        return np.asarray(a + np.float32(share) * (b - a), np.float32)

    found = Thresholds(*(middle(one.name) for one in fields(Thresholds)))
    closed = high.exit_threshold == 1
    found.exit_threshold[closed] = low.exit_threshold[closed]
    return found


def compute_within(curve: Curve, milliseconds: float) -> float:
    """The highest compute whose measured median is at most `milliseconds` per token."""
    timed = [(point.compute, point.milliseconds_per_token.median) for point in curve.points
             if point.milliseconds_per_token is not None]  # fmt: skip
    if not timed:
        raise UserError("this model's curve was calibrated without times; type: adaptive calibrate --model FOLDER")
    fitting = [compute for compute, median in timed if median <= milliseconds]
    if not fitting:
        fastest = min(median for _, median in timed)
        raise UserError(
            f"found target_ms {milliseconds:g}, the fastest point of this model takes {fastest:.3f} ms per token; "
            "give at least that"
        )
    return max(fitting)


def compute_for_loss(curve: Curve, loss: float) -> float:
    """The least compute whose measured loss is at most `loss` nats per token."""
    fitting = [point.compute for point in curve.points if point.loss <= loss]
    if not fitting:
        best = min(point.loss for point in curve.points)
        raise UserError(
            f"found target_loss {loss:g}, the best point of this model loses {best:.4f} nats per token; "
            "give at least that"
        )
    return min(fitting)


def agreeing(curve: Curve, share: float) -> ExitAgreement:
    """The measured exit threshold that promises agreement of at least `share` and no more than it must."""
    known = sorted(curve.agreement, key=lambda one: one.share)
    if not known:
        raise UserError(
            "this model has no exit layers, so every token has the whole model's choice; leave out agreement"
        )
    for one in known:
        if one.share >= share:
            return one
    raise UserError(
        f"found agreement {share:g}, this model was calibrated up to {known[-1].share:g}; "
        f"type: adaptive calibrate --agreement {share:g}"
    )
