"""The dial: a request becomes one threshold per layer, or an error that names what the model has (S12)."""

import math
from typing import Any

import numpy as np
import pytest
from support.cases import each
from support.graphs.rich_graph import H, sections
from support.graphs.tiny_graph import E, L, manifest_content

from adaptive_lm.contract.errors import WrongUsageError
from adaptive_lm.runtime import Dial, Manifest, UserError
from adaptive_lm.runtime.dial import Thresholds, resolve


def manifest(**model: Any) -> Manifest:
    content = manifest_content()
    content["model"] |= model
    return Manifest.model_validate(content)


def rich(**layer: Any) -> Manifest:
    """Return the manifest of the model with every mechanism, with changed fields in its layers."""
    content = manifest_content()
    for section, value in sections().items():
        content[section] = content[section] | value
    content["model"]["layers"] = [one | layer for one in content["model"]["layers"]]
    return Manifest.model_validate(content)


def asked(**dial: float) -> Thresholds:
    return resolve(manifest(), Dial(**dial))


def test_nothing_asked_is_the_models_own() -> None:
    own = asked()
    np.testing.assert_array_equal(own.router_top_p, np.float32([0.5] * L))
    np.testing.assert_array_equal(own.depth_threshold, np.float32([0, 0.4, 0]))
    np.testing.assert_array_equal(own.exit_threshold, np.float32([1, 1, 1]))


@pytest.mark.parametrize(("experts", "top_p"), [(1, 0.1), (1.75, 0.35), (2.5, 0.6), (3.25, 0.795), (E, 1.0)])
def test_a_wanted_number_of_experts_goes_through_the_table(experts: float, top_p: float) -> None:
    np.testing.assert_allclose(asked(experts=experts).router_top_p, top_p, rtol=1e-6)


@pytest.mark.parametrize(("share", "threshold"), [(0, 0.9), (0.25, 0.65), (0.5, 0.4), (0.75, 0.25), (1, 0.0)])
def test_a_wanted_share_of_layers_goes_through_the_table_where_there_is_a_router(
    share: float, threshold: float
) -> None:
    np.testing.assert_allclose(asked(layers_share=share).depth_threshold, [0, threshold, 0], rtol=1e-6)


def test_more_asked_for_is_never_less_used() -> None:
    top_p = [float(asked(experts=n).router_top_p[0]) for n in np.linspace(1, E, 50)]
    depth = [float(asked(layers_share=s).depth_threshold[1]) for s in np.linspace(0, 1, 50)]
    assert top_p == sorted(top_p)
    assert depth == sorted(depth, reverse=True)


def test_thresholds_go_where_the_model_has_such_a_choice() -> None:
    found = asked(router_top_p=0.7, depth_threshold=0.3, exit_threshold=0.9)
    np.testing.assert_array_equal(found.router_top_p, np.float32([0.7] * L))
    np.testing.assert_array_equal(found.depth_threshold, np.float32([0, 0.3, 0]))
    np.testing.assert_array_equal(found.exit_threshold, np.float32([0.9, 1, 1]))


@each("value", [math.nan, math.inf, -math.inf, -0.1, 1.1])
@each("name", ["layers_share", "router_top_p", "depth_threshold", "exit_threshold", "head_top_p"])
def test_a_threshold_out_of_range_says_the_range(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"found {name} .*expected 0 to 1") as error:
        Dial(**{name: value})
    assert error.value.exit_code == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1])
def test_no_experts_are_refused(value: float) -> None:
    with pytest.raises(UserError, match="found experts"):
        Dial(experts=value)


def test_fewer_experts_than_a_token_can_have_are_refused() -> None:
    with pytest.raises(UserError, match=r"found experts 0\.99, this model has 4 per layer; give 1 to 4"):
        asked(experts=0.99)


def test_more_experts_than_the_model_has_gives_both_numbers() -> None:
    with pytest.raises(UserError, match="found experts 5, this model has 4"):
        asked(experts=5)


def test_no_mass_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="expected more than 0"):
        Dial(router_top_p=0)


@each(
    "both",
    [
        {"experts": 2, "router_top_p": 0.5},
        {"layers_share": 0.5, "depth_threshold": 0.5},
        {"heads": 2, "head_top_p": 0.5},
        {"compute": 0.5, "target_ms": 2},
        {"target_ms": 2, "target_loss": 2},
        {"agreement": 0.9, "compute": 0.5},
    ],
)
def test_two_ways_to_set_one_threshold_exclude_each_other(both: dict[str, float]) -> None:
    with pytest.raises(UserError, match="give one of them"):
        Dial(**both)


PLAIN = [{"routing": "dense", "num_experts": 1, "depth_router": False, "exit": False}] * L


@pytest.mark.parametrize(
    ("dial", "message"),
    [
        ({"experts": 2}, "the number of experts is fixed"),
        ({"router_top_p": 0.5}, "the number of experts is fixed"),
        ({"depth_threshold": 0.1}, "no depth routers"),
        ({"layers_share": 0.5}, "no depth routers"),
        ({"exit_threshold": 0.5}, "no exit layers"),
    ],
)
def test_what_the_model_does_not_have_is_not_ignored(dial: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(manifest(layers=PLAIN), Dial(**dial))


def test_a_plain_model_takes_the_values_that_change_nothing() -> None:
    resolve(manifest(layers=PLAIN), Dial(depth_threshold=0, exit_threshold=1))
    resolve(manifest(layers=PLAIN), Dial(layers_share=1))


def test_a_model_without_table_asks_for_the_threshold_itself() -> None:
    content = manifest_content()
    content["dial"] |= {"router_top_p": [None] * L, "depth_threshold": [None] * L}
    bare = Manifest.model_validate(content)
    with pytest.raises(UserError, match="set router_top_p instead"):
        resolve(bare, Dial(experts=2))
    with pytest.raises(UserError, match="set depth_threshold instead"):
        resolve(bare, Dial(layers_share=0.5))
    assert resolve(bare, Dial(experts=E)).router_top_p[0] == 1


@each("single", ["experts", "heads", "layers_share", "router_top_p", "head_top_p",
                                    "depth_threshold", "exit_threshold"])  # fmt: skip
@each("calibrated", ["compute", "target_ms", "target_loss", "agreement"])
def test_a_point_of_the_curve_excludes_every_single_threshold(calibrated: str, single: str) -> None:
    with pytest.raises(UserError, match=f"found both {calibrated} and {single}.*give one of them") as error:
        Dial(**{calibrated: 0.5, single: 1})
    assert error.value.exit_code == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 0, 1.01])
def test_compute_is_above_nothing_and_at_most_everything(value: float) -> None:
    with pytest.raises(UserError, match=r"found compute .*expected above 0 and at most 1"):
        Dial(compute=value)


@each("name", ["target_ms", "target_loss"])
@each("value", [math.nan, math.inf, -1, 0])
def test_a_target_is_a_number_above_nothing(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"found {name} .*expected a number above 0"):
        Dial(**{name: value})


@pytest.mark.parametrize("value", [math.nan, 0, 1, 2])
def test_agreement_is_below_everything(value: float) -> None:
    with pytest.raises(UserError, match=r"found agreement .*below 1"):
        Dial(agreement=value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1])
def test_fewer_than_one_head_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="found heads"):
        Dial(heads=value)


@pytest.mark.parametrize(("heads", "level"), [(1, 0.01), (1.75, 0.4), (2.5, 0.7), (3.25, 0.9), (H, 1.0)])
def test_a_wanted_number_of_heads_goes_through_the_table(heads: float, level: float) -> None:
    np.testing.assert_allclose(resolve(rich(), Dial(heads=heads)).head_top_p, level, rtol=1e-6)


def test_a_wanted_number_of_heads_counts_from_the_fewest_to_the_most_that_a_token_can_use() -> None:
    few = rich(head_routing="adaptive", least_heads=2, most_heads=3)
    np.testing.assert_allclose(resolve(few, Dial(heads=2.5)).head_top_p, 0.7, rtol=1e-6)
    assert (resolve(few, Dial(heads=3)).head_top_p == 1).all()
    for wrong in (1.9, 3.1):
        with pytest.raises(UserError, match=f"found heads {wrong:g}, this model uses 2 to 3 per layer"):
            resolve(few, Dial(heads=wrong))


def test_a_head_threshold_is_that_of_every_layer_and_the_models_own_without_one() -> None:
    np.testing.assert_array_equal(resolve(rich(), Dial(head_top_p=0.3)).head_top_p, np.float32([0.3] * L))
    np.testing.assert_array_equal(resolve(rich(), Dial()).head_top_p, np.float32([0.8] * L))


@pytest.mark.parametrize("dial", [{"heads": 2}, {"head_top_p": 0.5}], ids=str)
def test_a_number_of_heads_is_refused_where_it_is_fixed(dial: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"the number of heads is fixed in this model \(routing all\)"):
        asked(**dial)
    with pytest.raises(UserError, match=r"the number of heads is fixed in this model \(routing top_k\)"):
        resolve(rich(head_routing="top_k", least_heads=2, most_heads=2), Dial(**dial))


def test_a_model_without_a_table_of_heads_asks_for_the_threshold_itself() -> None:
    bare = rich().model_copy(update={"dial": rich().dial.model_copy(update={"head_top_p": []})})
    with pytest.raises(UserError, match="set head_top_p instead"):
        resolve(bare, Dial(heads=2))


def test_thresholds_without_heads_have_every_head() -> None:
    ones = np.ones(L, np.float32)
    np.testing.assert_array_equal(Thresholds(ones, ones, ones).head_top_p, ones)


def test_a_level_just_below_one_is_not_written_as_one() -> None:
    """At 1 all experts run; six decimals would make it of this one."""
    below = np.nextafter(np.float32(1), np.float32(0))
    lists = Thresholds(*(np.full(L, below) for _ in range(5))).as_lists()
    assert all(value < 1 and np.float32(value) == below for values in lists.values() for value in values)


def capped(**thresholds: list[float]) -> Manifest:
    """Return the manifest of a model whose tokens choose among 2 of the experts, in all layers but the last."""
    content = manifest().model_dump()
    for layer in content["model"]["layers"][:-1]:
        layer["most_experts"] = 2
    content["thresholds"] |= thresholds
    return Manifest.model_validate(content)


def test_the_ratio_is_set_where_tokens_choose_among_few_candidates() -> None:
    thresholds = resolve(capped(), Dial(router_ratio=0.25))
    np.testing.assert_array_equal(thresholds.router_ratio, np.float32([0.25] * (L - 1) + [0]))
    assert thresholds.as_lists()["router_ratio"] == [0.25] * (L - 1) + [0]
    assert "router_ratio" not in resolve(capped(), Dial(router_ratio=0)).as_lists()
    np.testing.assert_array_equal(resolve(capped(router_ratio=[0.5] * L), Dial()).router_ratio, np.float32([0.5] * L))


def test_an_average_number_of_experts_is_at_most_that_of_the_candidates() -> None:
    thresholds = resolve(capped(router_ratio=[0.5] * L), Dial(experts=2))
    np.testing.assert_array_equal(thresholds.router_top_p[:-1], 1)
    np.testing.assert_array_equal(thresholds.router_ratio[:-1], 0)  # the table is that of the mass alone
    with pytest.raises(UserError, match=r"found experts 2\.5, this model has 2 per layer"):
        resolve(capped(), Dial(experts=2.5))


def test_a_ratio_is_refused_where_it_would_do_nothing() -> None:
    with pytest.raises(UserError, match="no most_experts"):
        resolve(manifest(), Dial(router_ratio=0.5))
    np.testing.assert_array_equal(resolve(manifest(), Dial(router_ratio=0)).router_ratio, 0)
    with pytest.raises(WrongUsageError, match=r"found router_ratio 1\.5, expected 0 to 1"):
        Dial(router_ratio=1.5)
    with pytest.raises(WrongUsageError, match="found both experts and router_ratio"):
        Dial(router_ratio=0.5, experts=2)
