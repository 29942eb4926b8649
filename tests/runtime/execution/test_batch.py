"""Sequences in a batch: they join, are copied, go back, fail and leave, and none changes another."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.graphs.rich_graph import WINDOW
from support.graphs.tiny_graph import CONTEXT, V

from adaptive_lm.runtime import Batch, Dial, Engine, Sequence, Session, Step, Thresholds, UserError, Work
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.execution.binding import KEPT_PASSES, Pass
from adaptive_lm.runtime.execution.memory import budget as memory
from adaptive_lm.runtime.execution.memory.kv_cache import CHUNK, ring

LONG = [int(token) for token in np.random.default_rng(5).integers(0, 257, size=300)]
SHORT = LONG[200:290]


def at(engine: Engine, top_p: float) -> Thresholds:
    return resolve(engine.manifest, Dial(router_top_p=top_p, depth_threshold=0.4, exit_threshold=0.8))


def alone(engine: Engine, ids: list[int], top_p: float, capacity: int | None = None) -> Step:
    return engine.session.sequence(at(engine, top_p), capacity).prefill(ids, num_logits=len(ids))


def same(step: Step, other: Step) -> None:
    np.testing.assert_array_equal(step.logits, other.logits)
    np.testing.assert_array_equal(step.routes.selected_experts, other.routes.selected_experts)
    np.testing.assert_array_equal(step.routes.layers_run, other.routes.layers_run)
    np.testing.assert_array_equal(step.routes.keys, other.routes.keys)
    np.testing.assert_array_equal(step.routes.positions, other.routes.positions)


def test_sequences_of_one_pass_are_what_each_is_alone(engine: Engine) -> None:
    batch = engine.session.batch(3)
    one, two = batch.join(at(engine, 0.3)), batch.join(at(engine, 0.9))
    steps = batch.run([Work(two, SHORT[:40], 40), Work(one, SHORT[40:90], 50)])
    same(steps[0], alone(engine, SHORT[:40], 0.9))
    same(steps[1], alone(engine, SHORT[40:90], 0.3))
    assert (one.position, two.position, batch.free) == (50, 40, 1)


def test_a_slot_is_free_again_when_its_sequence_leaves(engine: Engine) -> None:
    batch = engine.session.batch(2)
    one, two = batch.join(), batch.join()
    with pytest.raises(UserError, match="found 2 sequences, all slots are taken"):
        batch.join()
    one.prefill([250] * 30)
    two.prefill(SHORT[:20])
    batch.leave(one)
    assert batch.free == 1
    assert batch.sequences == [two]
    with pytest.raises(RuntimeError, match="has left its batch"):
        one.step(1)
    fresh = batch.join(at(engine, 0.5))
    same(fresh.prefill(SHORT, len(SHORT)), alone(engine, SHORT, 0.5))
    batch.leave(fresh)
    with pytest.raises(RuntimeError, match="has left its batch"):
        batch.leave(fresh)


def test_a_sequence_is_computed_at_most_once_in_a_pass(engine: Engine) -> None:
    batch = engine.session.batch(2)
    one = batch.join()
    with pytest.raises(ValueError, match="a sequence twice in one pass"):
        batch.run([Work(one, [1]), Work(one, [2])])
    assert one.position == 0


def test_nothing_is_computed_if_one_item_is_wrong(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = engine.session.batch(2)
    one, two = batch.join(), batch.join()
    with pytest.raises(UserError, match=f"found token {V}"):
        batch.run([Work(one, [1]), Work(two, [V])])
    assert one.position == two.position == 0
    execute = Pass.execute

    def broken(self: Pass) -> None:
        if self.ids[0] == 66:
            raise RuntimeError("out of memory")
        execute(self)

    one.prefill(SHORT[:5])
    monkeypatch.setattr(Pass, "execute", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        batch.run([Work(one, SHORT[5:9]), Work(two, [66])])
    assert (one.ids, two.ids) == (SHORT[:5], [])
    assert one.lengths.max() == 5
    same(one.prefill(SHORT[5:9], 4), _after(engine, SHORT[:5], SHORT[5:9]))


def _after(engine: Engine, first: list[int], then: list[int]) -> Step:
    sequence = engine.session.sequence()
    sequence.prefill(first)
    return sequence.prefill(then, len(then))


def test_no_logits_are_returned_where_none_are_wanted(engine: Engine) -> None:
    batch = engine.session.batch(2)
    steps = batch.run([Work(batch.join(), [1, 2, 3], 0), Work(batch.join(), [4], 0)])
    assert [step.logits.shape for step in steps] == [(0, V), (0, V)]
    assert [step.routes.layers_run.shape[1] for step in steps] == [3, 1]
    with pytest.raises(ValueError, match="found num_logits 2, expected 0 to 1"):
        batch.sequences[0].prefill([1], 2)


@pytest.fixture
def absent(changed: Callable[..., Path]) -> Engine:
    """Open the tiny model with `skipped_kv: none`, where layers hold different numbers of tokens."""
    session = Session(changed(model={"skipped_kv": "none"}), device="cpu", threads=1)
    return Engine(session, None)  # type: ignore[arg-type]  # nothing here is text


@pytest.mark.parametrize("back", [1, 5, 40])
def test_after_going_back_the_text_continues_as_if_nothing_had_been_there(
    engine: Engine, absent: Engine, back: int
) -> None:
    for one in (engine, absent):
        sequence = one.session.sequence(at(one, 0.5))
        sequence.prefill(SHORT[:40])
        lengths = sequence.lengths.copy()
        for token in [250] * back:
            sequence.step(token)
        sequence.rewind(40)
        assert sequence.ids == SHORT[:40]
        np.testing.assert_array_equal(sequence.lengths, lengths)
        plain = one.session.sequence(at(one, 0.5))
        plain.prefill(SHORT[:40])
        for token in SHORT[40:50]:
            same(sequence.step(token), plain.step(token))


@pytest.mark.parametrize("position", [-1, 4])
def test_going_back_to_no_position_of_the_text_is_refused(engine: Engine, position: int) -> None:
    sequence = engine.session.sequence()
    sequence.prefill([1, 2, 3])
    with pytest.raises(ValueError, match=f"found position {position}, expected 0 to 3"):
        sequence.rewind(position)


@pytest.mark.parametrize("total", [100, 128, 200, 300])
def test_a_ring_goes_back_a_chunk_and_says_when_it_cannot(rich_engine: Engine, total: int) -> None:
    def begun(ids: list[int]) -> Sequence:
        sequence = rich_engine.session.sequence()
        sequence.prefill(ids)
        return sequence

    sequence = begun(LONG[:total])
    reach = next(position for position in range(total + 1) if sequence.can_rewind(max(position, 1)))
    assert ring(WINDOW, 300) < 100, "the narrow ring has turned"
    assert total - reach >= CHUNK - 1
    if reach > 1:
        with pytest.raises(ValueError, match="which a ring no longer holds"):
            sequence.rewind(reach - 1)
    sequence.rewind(reach)
    assert not sequence.can_rewind(reach - 1) or reach <= 1, "what was overwritten does not come back"
    plain = begun(LONG[:reach]) if reach else rich_engine.session.sequence()
    for token in [7, 8, 9]:
        np.testing.assert_allclose(sequence.step(token).logits, plain.step(token).logits, rtol=1e-5, atol=1e-5)
    sequence.rewind(0)
    same(sequence.prefill(LONG[:90], 90), rich_engine.session.sequence().prefill(LONG[:90], 90))


@pytest.mark.parametrize("position", [None, 3, 40, 50])
def test_a_copy_continues_as_its_origin_and_both_go_their_way(
    engine: Engine, absent: Engine, position: int | None
) -> None:
    for one in (engine, absent):
        batch = one.session.batch(2)
        origin = batch.join(at(one, 0.5))
        origin.prefill(SHORT[:50])
        copy = batch.fork(origin, position)
        count = 50 if position is None else position
        assert copy.ids == SHORT[:count]
        plain, other = one.session.sequence(at(one, 0.5)), one.session.sequence(at(one, 0.5))
        plain.prefill(SHORT[:50])
        other.prefill(SHORT[:count])
        for token in SHORT[50:60]:
            steps = batch.run([Work(origin, [token]), Work(copy, [token + 1])])
            same(steps[0], plain.step(token))
            np.testing.assert_allclose(steps[1].logits, other.step(token + 1).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capacity", [96, 300])
def test_a_copy_may_have_another_capacity_and_other_rings(rich_engine: Engine, capacity: int) -> None:
    """Of a ring that has turned, the copy has the cells that both can hold."""
    batch = rich_engine.session.batch(2)
    origin = batch.join(capacity=300 if capacity == 96 else 96)
    origin.prefill(LONG[:90])
    copy = batch.fork(origin, 88, capacity)
    plain = rich_engine.session.sequence(capacity=capacity)
    plain.prefill(LONG[:88])
    for token in LONG[88:96]:
        np.testing.assert_allclose(copy.step(token).logits, plain.step(token).logits, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="to which this sequence cannot go back"):
        batch.fork(origin, 91)


def test_a_batch_that_does_not_fit_memory_is_refused_with_the_numbers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "UNASKED_BYTES", 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 2**20)
    with pytest.raises(UserError, match=rf"found 1000 sequences of {CONTEXT} tokens, .* take [\d,]+ MiB; 1 MiB"):
        engine.session.batch(1000)
    assert engine.session.batch(1).free == 1


def test_the_limit_of_a_container_counts_as_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = memory.available_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory.available_memory() > free / 2
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.available_memory() == 4000


def test_a_batch_has_at_least_one_slot_and_a_sequence_at_most_its_capacity(engine: Engine) -> None:
    with pytest.raises(ValueError, match="found 0 slots"):
        engine.session.batch(0)
    batch = engine.session.batch(1, 64)
    with pytest.raises(UserError, match="found 65 tokens, this batch holds 1 to 64"):
        batch.join(capacity=65)
    assert isinstance(batch, Batch)
    assert batch.free == 1


def test_passes_of_the_shapes_used_last_are_bound_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = engine.session.sequence()
    bound: list[int] = []
    bind = Pass.bind_inputs
    monkeypatch.setattr(Pass, "bind_inputs", lambda one: (bound.append(one.rows), bind(one)))
    for _ in range(3):
        sequence.rewind(0)
        sequence.prefill([1, 2, 3])
        sequence.step(4)
    assert bound == [3]


def test_a_batch_keeps_the_passes_used_last_and_no_more(engine: Engine) -> None:
    """Each shape is bound once and takes memory, and a server meets hundreds of them."""

    def passes() -> int:
        gc.collect()
        return sum(type(one) is Pass for one in gc.get_objects())

    sequence, before = engine.session.sequence(), passes()
    for count in range(1, KEPT_PASSES + 20):
        sequence.rewind(0)
        sequence.prefill(LONG[:count])
    assert KEPT_PASSES // 2 < passes() <= before + KEPT_PASSES
