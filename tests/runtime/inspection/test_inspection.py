"""The figures of `adaptive inspect`: by hand for a few tokens, and by a slow count of the tables of the rich graph."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.graphs.rich_graph import CONTEXT, STORY, H, expected, sections
from support.graphs.tiny_graph import E, L, write_manifest

from adaptive_lm.runtime import Dial, Engine, UserError
from adaptive_lm.runtime.dial import Thresholds
from adaptive_lm.runtime.inspection.figures import Choice, choice_of, entropy_of, mutual_information
from adaptive_lm.runtime.inspection.inspect import InspectParams, inspect_model, read
from adaptive_lm.runtime.inspection.inspection import Inspection
from adaptive_lm.runtime.inspection.token_groups import Grouping

POINT = {"router_top_p": 0.5, "depth_threshold": 0.5, "exit_threshold": 0.6, "head_top_p": 0.5}


def chosen(
    *used: set[int], units: int, groups: str = "", shared: int = 0, ran: str = "", floor: float = 0.01
) -> Choice:
    """Compute the figures of a few tokens from the units of each, its group (a letter), and `-` where it skipped."""
    selected = np.array([[i in one for i in range(units)] for one in used], bool).reshape(len(used), units)
    labels = sorted(set(groups or "a"))
    grouping = Grouping.by("letters", labels, [labels.index(letter) for letter in groups or "a" * len(used)])
    which = np.array([letter != "-" for letter in ran or "." * len(used)], bool)
    return choice_of(0, selected, which, np.arange(units) >= shared, (grouping,), floor)


def test_shares_spread_and_pairs_are_those_of_a_count_by_hand() -> None:
    """Three tokens that ran use {0}, {0, 1} and {1} of three units; a fourth skipped the layer."""
    found = chosen({0}, {0, 1}, {1}, set(), units=3, groups="aabb", ran="...-")
    assert found.tokens == 3
    np.testing.assert_allclose(found.share, [2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(found.how_many, [0, 2 / 3, 1 / 3, 0])
    assert found.per_token.mean == pytest.approx(4 / 3)
    assert found.per_token.deviation == pytest.approx(math.sqrt(2) / 3)
    assert found.per_token.median == 1
    np.testing.assert_allclose(found.coactivation, [[1, 0.5, 0], [0.5, 1, 0], [math.nan] * 3])
    assert found.entropy == pytest.approx(math.log(2))
    assert found.effective == pytest.approx(2)
    assert found.normalised_entropy == pytest.approx(math.log(2) / math.log(3))
    assert found.dead.tolist() == [2]


def test_shares_of_groups_and_specialisation_are_those_of_a_count_by_hand() -> None:
    """Both tokens of group a use unit 0 and one uses unit 1; the token of group b uses unit 1."""
    split = chosen({0}, {0, 1}, {1}, set(), units=3, groups="aabb", ran="...-").splits[0]
    assert split.labels == ("a", "b")
    assert split.tokens.tolist() == [2, 1], "the token that skipped the layer is in no group"
    np.testing.assert_allclose(split.share, [[1, 0.5, 0], [0, 1, 0]])
    each = math.log(3) - 2 / 3 * math.log(2)  # nats of being used by two of three; the group explains unit 0, of
    told = each + (each - 2 / 3 * math.log(2))  # unit 1 what is unsure within a is left
    assert split.information == pytest.approx(told)
    assert split.specialisation == pytest.approx(told / (2 * each))


@pytest.mark.parametrize(
    ("joint", "tokens", "share"),
    [
        ([[3, 0], [0, 5]], [3, 5], 1.0),
        ([[3, 3, 0], [5, 0, 5]], [3, 5], 1.0),
        ([[1, 2], [2, 4]], [3, 6], 0.0),
        ([[3, 0], [5, 0]], [3, 5], math.nan),
        ([[0, 0]], [0], math.nan),
    ],
    ids=["decided", "decided, several in use", "independent", "always the same", "nothing"],
)
def test_specialisation_goes_from_none_to_all(joint: list[list[float]], tokens: list[int], share: float) -> None:
    found = mutual_information(np.array(joint, float), np.array(tokens))[1]
    assert found == pytest.approx(share, abs=1e-12, nan_ok=True)


def test_what_chance_alone_gives_is_told() -> None:
    random = np.random.default_rng(0)
    groups = "".join(random.choice(list("abcd"), size=400))
    decided = chosen(*({"abcd".index(letter)} for letter in groups), units=4, groups=groups).splits[0]
    assert decided.specialisation == pytest.approx(1)
    assert 0 < decided.by_chance < 0.03
    blind = chosen(*({int(unit)} for unit in random.integers(4, size=400)), units=4, groups=groups).splits[0]
    assert blind.specialisation < 3 * blind.by_chance < 0.1


def test_shared_units_have_a_share_and_no_part_in_what_the_router_chose() -> None:
    found = chosen({0, 1}, {0, 2}, {0, 1}, {0, 2}, units=4, groups="abab", shared=1)
    np.testing.assert_allclose(found.share, [1, 0.5, 0.5, 0])
    assert found.entropy == pytest.approx(math.log(2))
    assert found.splits[0].specialisation == pytest.approx(1)
    assert found.dead.tolist() == [3]
    never = chosen({1}, {1}, units=2, shared=1)
    assert never.dead.tolist() == [], "one that is not chosen cannot be dead"


def test_the_strongest_pair_is_the_one_furthest_above_chance() -> None:
    """0 and 1 are together in half of the tokens as their shares say; 2 and 3 always go together."""
    found = chosen({0, 1, 2, 3}, {0, 1}, {0, 2, 3}, {0}, units=4)
    assert found.strongest_pair == (2, 3)
    assert found.together[2, 3] == 0.5
    assert chosen({0}, {1}, {0}, units=2).strongest_pair is None
    assert chosen({0, 1}, {2}, units=3, shared=1).strongest_pair is None, "a shared unit goes with all"


@pytest.mark.parametrize(("floor", "dead"), [(0.0, []), (0.2, [2]), (0.25, [2]), (0.3, [1, 2])])
def test_dead_is_below_the_floor(floor: float, dead: list[int]) -> None:
    assert chosen({0}, {0}, {0}, {1}, units=3, floor=floor).dead.tolist() == dead


def test_a_layer_that_no_token_ran_has_no_figures_and_only_dead_units() -> None:
    found = chosen({0}, {1}, units=2, ran="--")
    assert found.tokens == 0
    assert found.dead.tolist() == [0, 1]
    assert math.isnan(found.entropy)
    assert math.isnan(found.per_token.mean)
    assert np.isnan(found.coactivation).all()
    assert np.isnan(found.splits[0].share).all()
    assert found.strongest_pair is None


def test_entropy_of_equal_counts_is_the_logarithm_of_their_number() -> None:
    assert entropy_of(np.array([3.0, 3, 0, 3])) == pytest.approx(math.log(3))
    assert entropy_of(np.array([0.0, 7])) == 0


@pytest.fixture(scope="module")
def inspected(rich: Path) -> Inspection:
    return inspect_model(rich, InspectParams(tokens=1200, frequent=6, dial=Dial(**POINT)), device="cpu", threads=1)


@pytest.fixture(scope="module")
def slow() -> dict[str, Any]:
    """Read the usage outputs of the graph for the same text, one context at a time, as plain lists per token."""
    text = (STORY * 30)[:1200]
    pieces = [text[begin : begin + CONTEXT] for begin in range(0, 1200, CONTEXT)]
    assert len(pieces) == 3
    found = [expected(list(piece.encode()), *POINT.values()) for piece in pieces]
    joined = {name: np.concatenate([getattr(one, name) for one in found], axis=1)
              for name in ("experts", "heads", "run", "windows")}  # fmt: skip
    return joined | {"text": text, "positions": [i for piece in pieces for i in range(len(piece))]}


@pytest.mark.parametrize("kind", ["experts", "heads"])
def test_figures_of_the_rich_model_are_those_of_a_slow_count(
    inspected: Inspection, slow: dict[str, Any], kind: str
) -> None:
    part = inspected.part(kind)
    assert part is not None
    assert [choice.layer for choice in part.choices] == list(range(L))
    for layer, choice in enumerate(part.choices):
        ran = [t for t in range(1200) if slow["run"][layer, t]]
        assert choice.tokens == len(ran)
        assert ran
        for unit in range(E if kind == "experts" else H):
            used = [t for t in ran if slow[kind][layer, t, unit]]
            assert choice.share[unit] == pytest.approx(len(used) / len(ran))
            for other in range(E if kind == "experts" else H):
                both = [t for t in used if slow[kind][layer, t, other]]
                assert choice.together[unit, other] == pytest.approx(len(both) / len(ran))
            for place, label in enumerate(inspected.groupings[2].labels[:-1]):
                own = [t for t in ran if slow["text"][t] == label.replace("␣", " ")]
                share = len(set(own) & set(used)) / len(own) if own else math.nan
                assert choice.splits[2].share[place, unit] == pytest.approx(share, nan_ok=True)
                assert choice.splits[2].tokens[place] == len(own)
    numbers = [slow[kind][:, t].sum() / slow["run"][:, t].sum() for t in range(1200)]
    assert part.per_token.mean == pytest.approx(np.mean(numbers))
    assert part.per_token.deviation == pytest.approx(np.std(numbers))
    first = [t for t in range(1200) if slow["positions"][t] == 0]
    assert len(first) == 3
    assert part.per_group(1)[0] == pytest.approx(slow[kind][:, first].sum() / slow["run"][:, first].sum())


def test_layers_are_a_choice_too(inspected: Inspection, slow: dict[str, Any]) -> None:
    part = inspected.part("layers")
    assert part is not None
    (choice,) = part.choices
    np.testing.assert_allclose(choice.share, slow["run"].mean(1))
    assert choice.free.tolist() == [False, True, True], "layer 1 has a router, both follow an exit"
    assert part.per_token.mean == pytest.approx(slow["run"].sum(0).mean())
    assert choice.layer is None


def test_heads_that_the_manifest_calls_shared_are_no_choice(rich_copy: Path) -> None:
    layers = [layer | {"shared_heads": 1} for layer in sections()["model"]["layers"]]
    rest = {name: value for name, value in sections().items() if name != "model"}
    write_manifest(rich_copy, model=sections()["model"] | {"layers": layers}, **rest)
    part = inspect_model(rich_copy, InspectParams(tokens=600), device="cpu", threads=1).part("heads")
    assert part is not None
    assert all(choice.free.tolist() == [False, True, True, True] for choice in part.choices)


def test_windows_are_those_of_the_tokens_that_ran(inspected: Inspection, slow: dict[str, Any]) -> None:
    assert [use.layer for use in inspected.window_uses] == [0, 2]
    for use in inspected.window_uses:
        windows = slow["windows"][use.layer][slow["run"][use.layer]]
        assert use.window.mean == pytest.approx(windows.mean())
        assert use.window.p95 == pytest.approx(np.percentile(windows, 95))
        seen = 0
        for place, label in enumerate(inspected.groupings[2].labels[:-1]):
            own = [t for t in range(1200) if slow["text"][t] == label.replace("␣", " ") and slow["run"][use.layer, t]]
            mean = np.mean(slow["windows"][use.layer, own]) if own else math.nan
            assert use.by_group[2][place] == pytest.approx(mean, nan_ok=True)
            seen += bool(own)
        assert seen


def test_the_first_of_the_text_is_kept_with_what_it_used(inspected: Inspection, slow: dict[str, Any]) -> None:
    assert "".join(text for text, _ in inspected.sample) == slow["text"][:400]
    for t, (_, usage) in enumerate(inspected.sample):
        assert usage.experts == tuple(tuple(np.flatnonzero(slow["experts"][layer, t])) for layer in range(L))
    assert 0 < inspected.executed_share < 1


def test_each_piece_of_the_context_begins_anew(rich_engine: Engine) -> None:
    routes = read(rich_engine, Thresholds.of(rich_engine.manifest.thresholds), [65] * (2 * CONTEXT + 3))
    assert routes.positions.tolist() == [*range(CONTEXT), *range(CONTEXT), 0, 1, 2]


def test_the_least_dial_leaves_only_the_first_expert_alive(rich: Path) -> None:
    params = InspectParams(tokens=600, dial=Dial(experts=1))
    part = inspect_model(rich, params, device="cpu", threads=1).part("experts")
    assert part is not None
    for choice in part.choices:
        assert choice.share.tolist() == [1, 0, 0, 0]
        assert choice.dead.tolist() == [1, 2, 3]
        assert choice.entropy == 0
        assert math.isnan(choice.splits[0].specialisation)


def test_less_asked_for_is_less_used(rich: Path) -> None:
    def used(experts: float) -> float:
        params = InspectParams(tokens=600, dial=Dial(experts=experts))
        part = inspect_model(rich, params, device="cpu", threads=1).part("experts")
        assert part is not None
        return part.per_token.mean

    assert all(less < more for less, more in pairwise(map(used, (1, 2, 3, 4))))


def test_one_token_is_text_enough(rich: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("M")
    found = inspect_model(rich, InspectParams(data=tmp_path / "one.txt"), device="cpu", threads=1)
    assert found.tokens == 1
    assert [one.labels for one in found.groupings] == [("line start",), ("0",), ("M",)]
    assert found.warnings == ("only 1 tokens were read, so shares are rough; read 512 or more",)


def test_no_text_is_an_error_that_says_what_to_do(rich: Path, rich_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(UserError, match=r"none.txt has 0 tokens, expected at least 1; give another --data FILE"):
        inspect_model(rich, InspectParams(data=tmp_path / "none.txt"), device="cpu", threads=1)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"latin.txt, line 1: not UTF-8 \(byte 0xe9 at offset 3\).*iconv"):
        inspect_model(rich, InspectParams(data=tmp_path / "latin.txt"), device="cpu", threads=1)
    (tmp_path / "facts.jsonl").write_text('{"text": "M"}\n')
    with pytest.raises(UserError, match=r"facts.jsonl holds records, expected plain text in UTF-8; leave --data out"):
        inspect_model(rich, InspectParams(data=tmp_path / "facts.jsonl"), device="cpu", threads=1)
    (rich_copy.parent / "heldout.txt").unlink()
    with pytest.raises(UserError, match=r"no heldout.txt in .*give a text with: --data FILE"):
        inspect_model(rich_copy, InspectParams(), device="cpu", threads=1)


PLAIN = [{"routing": "dense", "num_experts": 1, "depth_router": False, "exit": False}] * L


def test_a_model_without_a_choice_says_so(changed: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"nothing to inspect: found no routed experts or heads.*train one with"):
        inspect_model(changed(model={"layers": PLAIN}), InspectParams(), device="cpu", threads=1)
