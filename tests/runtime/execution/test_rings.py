"""Windows in rings, routed heads and counted cells: the session gives the expected outputs of the rich graph."""

from collections.abc import Sequence

import numpy as np
import pytest
from support.graphs.rich_graph import CONTEXT, WIDEST, WINDOW, Expected, H, expected
from support.graphs.tiny_graph import L

from adaptive_lm.runtime import Dial, Engine
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.execution.binding import Pass
from adaptive_lm.runtime.execution.memory.kv_cache import CHUNK, cache_shapes, ring
from adaptive_lm.runtime.execution.sequence import Sequence as Tokens
from adaptive_lm.runtime.execution.step import Step, Work

POINT = (0.6, 0.4, 0.8, 0.5)
LONG = [int(token) for token in np.random.default_rng(5).integers(0, 257, size=300)]  # more than any ring holds


@pytest.fixture
def sequence(rich_engine: Engine) -> Tokens:
    top_p, depth, leave, heads = POINT
    dial = Dial(router_top_p=top_p, depth_threshold=depth, exit_threshold=leave, head_top_p=heads)
    return rich_engine.session.sequence(resolve(rich_engine.manifest, dial), len(LONG))


def check(step: Step, whole: Expected, tokens: Sequence[int]) -> None:
    """`step` gave what the graph means for `tokens` of the sequence."""
    np.testing.assert_allclose(step.logits, whole.logits[tokens], rtol=1e-5, atol=1e-4)
    assert step.routes.selected_heads is not None
    assert step.routes.windows is not None
    np.testing.assert_array_equal(step.routes.selected_experts, whole.experts[:, tokens])
    np.testing.assert_array_equal(step.routes.selected_heads, whole.heads[:, tokens])
    np.testing.assert_array_equal(step.routes.layers_run, whole.run[:, tokens])
    np.testing.assert_array_equal(step.routes.windows, whole.windows[:, tokens])
    np.testing.assert_array_equal(step.routes.exit_layer, whole.exits[tokens])
    np.testing.assert_array_equal(step.routes.positions, tokens)


def test_a_prompt_longer_than_a_ring_gives_what_the_graph_means(sequence: Tokens) -> None:
    assert ring(WINDOW, len(LONG)) < len(LONG)
    check(sequence.prefill(LONG, num_logits=len(LONG)), expected(LONG, *POINT), range(len(LONG)))


@pytest.mark.parametrize("cut", [0, 1, 50, 64, 65, 200, 299])
def test_a_long_prompt_and_its_tokens_one_by_one_are_the_same(sequence: Tokens, cut: int) -> None:
    whole = expected(LONG, *POINT)
    if cut:
        check(sequence.prefill(LONG[:cut], num_logits=cut), whole, range(cut))
    for t in range(cut, len(LONG)):
        check(sequence.step(LONG[t]), whole, [t])


@pytest.mark.parametrize("cut", [1, 70, 130])
def test_a_prompt_in_two_parts_is_the_prompt(sequence: Tokens, cut: int) -> None:
    sequence.prefill(LONG[:cut])
    check(sequence.prefill(LONG[cut:], num_logits=len(LONG) - cut), expected(LONG, *POINT), range(cut, len(LONG)))


@pytest.mark.parametrize("wanted", [1, 2, 44, 45, 130, 299])
def test_the_wanted_logits_are_the_last_ones_over_any_number_of_chunks(sequence: Tokens, wanted: int) -> None:
    step = sequence.prefill(LONG, num_logits=wanted)
    np.testing.assert_allclose(step.logits, expected(LONG, *POINT).logits[-wanted:], rtol=1e-5, atol=1e-4)
    assert step.routes.layers_run.shape == (L, len(LONG)), "the routes are of the whole prompt all the same"


def test_a_new_sequence_sees_nothing_that_a_ring_still_holds(sequence: Tokens) -> None:
    sequence.prefill([250] * len(LONG))
    sequence.rewind(0)
    check(sequence.prefill(LONG[:100], num_logits=100), expected(LONG[:100], *POINT), range(100))


def test_a_ring_holds_a_window_and_a_chunk_and_no_more_than_the_capacity(rich_engine: Engine) -> None:
    shapes = cache_shapes(rich_engine.manifest.model, CONTEXT)
    assert shapes["key", 1] == (1, 1, CONTEXT, 2)
    for layer, window in ((0, WINDOW), (2, WIDEST)):
        assert window + CHUNK - 1 <= shapes["value", layer][2] < CONTEXT
    assert [name for name in shapes if name[0] == "counted"] == [("counted", 1), ("counted", 2)]
    assert shapes["counted", 2] == (1, 1, shapes["key", 2][2], 1)
    assert ring(WINDOW, 16) == 16
    assert ring(0, CONTEXT) == CONTEXT


def test_a_prompt_that_a_ring_holds_is_one_pass_and_a_longer_one_as_few_as_it_can(
    sequence: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    run = Pass.run

    def spy(self: Pass, work: Sequence[Work]) -> list[Step]:
        passes.append(self.rows)
        return run(self, work)

    monkeypatch.setattr(Pass, "run", spy)
    sequence.prefill(LONG[:80])
    sequence.rewind(0)
    sequence.prefill(LONG)
    assert passes == [80, CHUNK, CHUNK, CHUNK, CHUNK, len(LONG) - 4 * CHUNK]


def test_a_model_without_windows_computes_every_prompt_in_one_pass(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    execute = Pass.execute
    monkeypatch.setattr(Pass, "execute", lambda self: (passes.append(self.rows), execute(self)))
    engine.session.sequence(capacity=96).prefill([1] * 96)
    assert passes == [96]


def test_keys_are_those_inside_the_window(sequence: Tokens) -> None:
    routes = sequence.prefill(LONG).routes
    place = np.arange(1, len(LONG) + 1)
    whole = expected(LONG, *POINT)
    np.testing.assert_array_equal(routes.keys[0], np.minimum(place, WINDOW))
    np.testing.assert_array_equal(routes.keys[1], place)
    own = whole.windows[2]
    np.testing.assert_array_equal(routes.keys[2], np.where(own > 0, np.minimum(place, own), place))


def test_usage_names_the_heads_and_the_windows(sequence: Tokens) -> None:
    whole = expected(LONG, *POINT)
    for t, token in enumerate(LONG[:40]):
        usage = sequence.step(token).usage
        assert usage.heads == tuple(tuple(np.flatnonzero(whole.heads[i, t]).tolist()) for i in range(L))
        assert usage.windows == tuple(whole.windows[:, t].tolist())
        assert 0 < usage.heads_per_layer <= H
