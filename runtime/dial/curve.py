"""Find a point of the calibrated curve: by a share of the compute, a time, a loss, or agreement."""

from bisect import bisect_left
from dataclasses import fields

import numpy as np

from ...contract.errors import UserError
from ..format.schema.curve import Curve, ExitAgreement
from .thresholds import Floats, Thresholds


def at_compute(curve: Curve, compute: float) -> Thresholds:
    """Return the thresholds for `compute`, a share of the dense FLOPs, interpolated between two points of the curve.

    Along the curve every threshold moves one way only, so the cost of an interpolated point is between the costs of its
    neighbours. Exits that are closed at the upper point take the value of the lower point: barely open, they would cost
    their checks and save nothing. Below the first point the result is the first point: no cheaper one was found.
    """
    computes = [point.compute for point in curve.points]
    above = min(bisect_left(computes, compute), len(computes) - 1)
    high = Thresholds.of(curve.points[above].thresholds)
    if above == 0 or compute >= computes[above]:
        return high
    low = Thresholds.of(curve.points[above - 1].thresholds)
    return between(low, high, (compute - computes[above - 1]) / (computes[above] - computes[above - 1]))


def between(low: Thresholds, high: Thresholds, share: float) -> Thresholds:
    """Interpolate: `share` of the way from `low` to `high`, above 0 and below 1; see `at_compute`."""

    def middle(name: str) -> Floats:
        a, b = getattr(low, name), getattr(high, name)
        return np.asarray(a + np.float32(share) * (b - a), np.float32)

    thresholds = Thresholds(*(middle(one.name) for one in fields(Thresholds)))
    closed = high.exit_threshold == 1
    thresholds.exit_threshold[closed] = low.exit_threshold[closed]
    return thresholds


def compute_within(curve: Curve, milliseconds: float) -> float:
    """Return the highest compute whose measured median is at most `milliseconds` per token.

    Raises:
        UserError: the curve has no times, or no point is that fast.
    """
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
    """Return the least compute whose measured loss is at most `loss` nats per token.

    Raises:
        UserError: no point has so low a loss.
    """
    fitting = [point.compute for point in curve.points if point.loss <= loss]
    if not fitting:
        best = min(point.loss for point in curve.points)
        raise UserError(
            f"found target_loss {loss:g}, the best point of this model loses {best:.4f} nats per token; "
            "give at least that"
        )
    return min(fitting)


def agreeing(curve: Curve, share: float) -> ExitAgreement:
    """Return the measured exit threshold with the smallest agreement that is at least `share`.

    Raises:
        UserError: the model has no exit layers, or was calibrated for less.
    """
    measured = sorted(curve.agreement, key=lambda one: one.share)
    if not measured:
        raise UserError(
            "this model has no exit layers, so every token has the whole model's choice; leave out agreement"
        )
    for one in measured:
        if one.share >= share:
            return one
    raise UserError(
        f"found agreement {share:g}, this model was calibrated up to {measured[-1].share:g}; "
        f"type: adaptive calibrate --agreement {share:g}"
    )
