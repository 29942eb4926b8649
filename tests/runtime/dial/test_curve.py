"""A point of the calibrated curve by compute, time, loss or agreement, and what is refused."""

from typing import Any

import numpy as np
import pytest
from support.graphs.rich_graph import CURVE, HERE, POINTS, curve_point, sections
from support.graphs.tiny_graph import L, manifest_content

from adaptive_lm.runtime import Dial, Manifest, UserError
from adaptive_lm.runtime.dial import Thresholds, resolve, warnings_for


def content(**changes: Any) -> dict[str, Any]:
    found = manifest_content() | {"curve": CURVE | changes}
    for section, value in sections().items():
        found[section] = found[section] | value
    return found


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(content(**changes))


def asked(**dial: float) -> Thresholds:
    return resolve(manifest(), Dial(**dial))


@pytest.mark.parametrize("which", range(4))
def test_a_calibrated_compute_has_the_thresholds_of_its_point(which: int) -> None:
    found = asked(compute=POINTS[which]["compute"]).as_lists()
    assert found == {name: [pytest.approx(x) for x in values] for name, values in POINTS[which]["thresholds"].items()}


def test_compute_between_two_points_has_thresholds_between_theirs() -> None:
    found = asked(compute=0.35)
    np.testing.assert_allclose(found.router_top_p, 0.3, rtol=1e-6)
    np.testing.assert_allclose(found.depth_threshold, [0, 0.7, 0], rtol=1e-6)
    np.testing.assert_allclose(found.exit_threshold, [0.5, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(asked(compute=0.6).head_top_p, 0.7, rtol=1e-6)


def test_exits_closed_above_stand_as_below_and_are_not_half_open() -> None:
    """An exit that is barely open costs its check for every token, and saves no compute."""
    np.testing.assert_allclose(asked(compute=0.699).exit_threshold, [0.8, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(asked(compute=0.7).exit_threshold, 1)


def test_every_threshold_moves_one_way_as_compute_rises() -> None:
    walked = [asked(compute=float(value)) for value in np.linspace(0.01, 1, 200)]
    for name, sign in (("router_top_p", 1), ("head_top_p", 1), ("exit_threshold", 1), ("depth_threshold", -1)):
        steps = np.diff(np.stack([getattr(one, name) for one in walked]), axis=0) * sign
        assert (steps >= 0).all()
        assert (steps > 0).any()


def test_less_than_the_least_is_the_least_and_is_told() -> None:
    assert asked(compute=0.05).as_lists() == asked(compute=0.3).as_lists()
    assert warnings_for(manifest(), Dial(compute=0.05), HERE) == [
        "the least compute that this model was calibrated for is 0.3; it runs at that"
    ]
    assert not warnings_for(manifest(), Dial(compute=0.3), HERE)


@pytest.mark.parametrize(("target", "compute"), [(1.0, 0.3), (1.5, 0.3), (1.95, 0.7), (2.0, 0.7), (9.0, 1.0)])
def test_a_time_takes_the_most_compute_that_was_measured_within_it(target: float, compute: float) -> None:
    assert asked(target_ms=target).as_lists() == asked(compute=compute).as_lists()


@pytest.mark.parametrize(("target", "compute"), [(2.0, 1.0), (2.3, 0.7), (2.49, 0.7), (2.5, 0.5), (9.0, 0.3)])
def test_a_loss_takes_the_least_compute_that_was_measured_to_keep_it(target: float, compute: float) -> None:
    assert asked(target_loss=target).as_lists() == asked(compute=compute).as_lists()


@pytest.mark.parametrize(("share", "leave"), [(0.5, 0.5), (0.9, 0.5), (0.95, 0.8), (0.99, 0.8)])
def test_agreement_takes_the_exit_threshold_with_at_least_that_agreement(share: float, leave: float) -> None:
    found = asked(agreement=share)
    np.testing.assert_allclose(found.exit_threshold, [leave, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(found.router_top_p, np.float32([0.5] * L))  # the model's own


@pytest.mark.parametrize(
    ("dial", "message"),
    [
        ({"target_ms": 0.5}, r"found target_ms 0\.5, the fastest point of this model takes 1\.000 ms"),
        ({"target_loss": 1.5}, r"found target_loss 1\.5, the best point of this model loses 2\.0000"),
        ({"agreement": 0.999}, r"calibrated up to 0\.99; type: adaptive calibrate --agreement 0\.999"),
    ],
)
def test_a_target_that_no_point_meets_says_what_there_is(dial: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        asked(**dial)


@pytest.mark.parametrize("name", ["compute", "target_ms", "target_loss", "agreement"])
def test_a_model_that_is_not_calibrated_says_how_to_do_it(name: str) -> None:
    with pytest.raises(UserError, match="not calibrated; type: adaptive calibrate --model"):
        resolve(Manifest.model_validate(manifest_content()), Dial(**{name: 0.5}))


def test_a_curve_without_times_or_exits_says_so() -> None:
    points = [one | {"milliseconds_per_token": None} for one in POINTS]
    with pytest.raises(UserError, match="calibrated without times"):
        resolve(manifest(points=points), Dial(target_ms=1))
    with pytest.raises(UserError, match="no exit layers"):
        resolve(manifest(agreement=[]), Dial(agreement=0.5))


def test_times_of_another_machine_are_told() -> None:
    messages = warnings_for(manifest(), Dial(target_ms=2), HERE | {"cpu": "another"})
    assert len(messages) == 1
    assert "another machine (cpu this one; here cpu another)" in messages[0]
    assert not warnings_for(manifest(), Dial(target_ms=2), HERE | {"load_average": [1, 2, 3]})
    assert not warnings_for(manifest(), Dial(compute=0.5), HERE | {"cpu": "another"})


def test_times_of_another_target_are_reported() -> None:
    """A curve of an older version names no target: it was measured on the portable graph, the only one then."""
    messages = warnings_for(manifest(), Dial(target_ms=2), HERE | {"target": "cpu"})
    assert len(messages) == 1
    assert "(target portable; here target cpu)" in messages[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": POINTS[::-1]}, "compute of the points must rise"),
        ({"points": POINTS[:1]}, "at least two points"),
        ({"points": [POINTS[0], POINTS[1] | {"executed_share": 0.2}]}, "executed_share of the points must not fall"),
        ({"points": [curve_point(0, 1, 0, 1, 1), *POINTS]}, "greater than 0"),
        (
            {"points": [POINTS[0] | {"thresholds": POINTS[0]["thresholds"] | {"head_top_p": [1]}}, *POINTS[1:]]},
            r"curve\.points\.0\.thresholds\.head_top_p has 1 entries for 3 layers",
        ),
    ],
    ids=["falling", "one point", "falling cost", "no compute", "length"],
)
def test_a_curve_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manifest(**changes)
