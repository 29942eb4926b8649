"""States of recurrent layers: they begin at zero, are copied, and a sequence goes back by computing tokens again."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from support.cases import each
from support.graphs.state_graph import STATES, expected, write_hybrid

from adaptive_lm.runtime import Dial, Engine, Session, Step, Thresholds, UserError, Work, load
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.execution.binding import Pass
from adaptive_lm.runtime.execution.memory import budget as memory
from adaptive_lm.runtime.execution.memory.budget import slot_bytes
from adaptive_lm.runtime.execution.memory.checkpoints import Checkpoints
from adaptive_lm.runtime.execution.memory.kv_cache import cache_bytes
from adaptive_lm.runtime.execution.memory.states import MOST_COPIES, SPACING, state_bytes

LONG = [int(token) for token in np.random.default_rng(5).integers(0, 257, size=700)]
DEPTH = 0.3
KINDS = {
    "hybrid": {"attention": True, "skipped": "none"},
    "project": {"attention": True, "skipped": "project"},
    "no_attention": {"attention": False, "skipped": "none"},
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Engine]:
    """Return a function that opens a model of a kind whose graph mixes sequences or computes each alone."""
    place, engines = tmp_path_factory.mktemp("states"), dict[tuple[str, bool], Engine]()

    def engine(kind: str, mixes: bool) -> Engine:
        if (kind, mixes) not in engines:
            folder = write_hybrid(place / f"{kind}-{mixes}" / "model", mixes=mixes, **KINDS[kind])  # type: ignore[arg-type]
            engines[kind, mixes] = load(folder, device="cpu", threads=1)
        return engines[kind, mixes]

    return engine


@pytest.fixture(params=["hybrid-mixes", "hybrid-alone", "project-mixes", "no_attention-mixes", "no_attention-alone"])
def engine(request: pytest.FixtureRequest, opened: Callable[[str, bool], Engine]) -> Engine:
    kind, _, mixes = request.param.partition("-")
    return opened(kind, mixes == "mixes")


@pytest.fixture(params=KINDS)
def mixing(request: pytest.FixtureRequest, opened: Callable[[str, bool], Engine]) -> Engine:
    return opened(request.param, True)


def at(engine: Engine, depth: float = DEPTH) -> Thresholds:
    return resolve(engine.manifest, Dial(router_top_p=0.5, depth_threshold=depth))


def alone(engine: Engine, ids: Sequence[int], last: int, depth: float = DEPTH) -> Step:
    """Compute all ids in a new memory, and return the step of the last ones."""
    sequence = engine.session.sequence(at(engine, depth), 704)
    if len(ids) > last:
        sequence.prefill(ids[:-last], 0)
    return sequence.prefill(ids[-last:], last)


def same(step: Step, other: Step) -> None:
    np.testing.assert_array_equal(step.logits, other.logits)
    for name in ("selected_experts", "layers_run", "exit_layer", "keys", "positions"):
        np.testing.assert_array_equal(getattr(step.routes, name), getattr(other.routes, name))


def states(engine: Engine, sequence: object) -> list[bytes]:
    return [value.numpy()[sequence.slot].tobytes() for value in sequence.states.values.values()]  # type: ignore[attr-defined]


@each("parts", [[300], [1] * 300, [7, 120, 1, 1, 171]])
def test_a_prompt_in_any_parts_gives_what_the_recurrence_means(engine: Engine, parts: list[int]) -> None:
    attention = engine.manifest.model.num_layers == 2
    logits, runs, state = expected(LONG[:300], DEPTH, attention=attention)
    sequence, place = engine.session.sequence(at(engine), 704), 0
    whole = alone(engine, LONG[:300], 300)
    for count in parts:
        step = sequence.prefill(LONG[place : place + count], count)
        np.testing.assert_allclose(step.logits, logits[place : place + count], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(step.routes.layers_run[0], runs[place : place + count])
        np.testing.assert_array_equal(step.logits, whole.logits[place : place + count])
        place += count
    assert 0 < runs.sum() < 300
    np.testing.assert_allclose(sequence.states.values["state", 0].numpy()[0], state, rtol=1e-5, atol=1e-5)
    counted = 300 if engine.manifest.model.skipped_kv == "project" else runs.sum()
    assert sequence.lengths.tolist() == [counted, *[300] * attention]


def test_a_skipped_token_leaves_the_state_untouched(engine: Engine) -> None:
    sequence = engine.session.sequence(at(engine), 704)
    sequence.prefill(LONG[:20])
    before = states(engine, sequence)
    sequence.thresholds = at(engine, 1.0)
    sequence.prefill(LONG[20:40])
    assert states(engine, sequence) == before
    sequence.thresholds = at(engine, 0.0)
    sequence.step(LONG[40])
    assert states(engine, sequence) != before


def test_neighbours_in_a_pass_change_nothing_and_a_slot_begins_at_zero(engine: Engine) -> None:
    batch = engine.session.batch(3, 704)
    first, second = batch.join(at(engine)), batch.join(at(engine, 0.6))
    steps = batch.run([Work(first, LONG[:40], 40), Work(second, LONG[40:90], 50)])
    same(steps[0], alone(engine, LONG[:40], 40))
    same(steps[1], alone(engine, LONG[40:90], 50, 0.6))
    batch.leave(second)
    third = batch.join(at(engine))
    steps = batch.run([Work(third, LONG[200:260], 60), Work(first, LONG[40:41])])
    same(steps[0], alone(engine, LONG[200:260], 60))
    same(steps[1], alone(engine, LONG[:41], 1))


@each("position", [0, 1, 37, 128, 200, 299, 300])
def test_after_going_back_the_text_continues_as_if_nothing_had_been_there(engine: Engine, position: int) -> None:
    sequence = engine.session.sequence(at(engine), 704)
    sequence.prefill(LONG[:130])
    for token in LONG[130:300]:
        sequence.step(token)
    nearest = sequence.nearest(position)
    sequence.rewind(position)
    assert (sequence.ids, sequence.owed) == (LONG[:position], position - nearest)
    assert sequence.owed <= SPACING + 1
    step = sequence.prefill([7, 8, 9], 3)
    assert step.routes.layers_run.shape[1] == 3, "the routes are those of the new tokens alone"
    same(step, alone(engine, [*LONG[:position], 7, 8, 9], 3))
    assert sequence.owed == 0


def test_tokens_are_computed_again_at_the_thresholds_that_they_had(engine: Engine) -> None:
    sequence, depths = engine.session.sequence(at(engine), 704), [0.3, 0.7, 0.1, 0.3]
    for turn, depth in enumerate(depths):
        sequence.thresholds = at(engine, depth)
        sequence.prefill(LONG[30 * turn : 30 * (turn + 1)])
    sequence.rewind(110)
    assert sequence.owed == 110
    sequence.thresholds = at(engine, 0.9)
    other = engine.session.sequence(at(engine), 704)
    for turn, depth in enumerate(depths):
        other.thresholds = at(engine, depth)
        other.prefill(LONG[30 * turn : min(30 * (turn + 1), 110)])
    other.thresholds = at(engine, 0.9)
    same(sequence.step(5), other.step(5))
    assert states(engine, sequence) == states(engine, other)
    assert sequence.computed_at(at(engine).stacked()) == 30


def test_a_marked_position_costs_nothing_to_go_back_to(engine: Engine) -> None:
    sequence = engine.session.sequence(at(engine), 704)
    sequence.prefill(LONG[:50])
    sequence.mark()
    for _ in range(3):
        sequence.prefill(LONG[100:110])
        sequence.rewind(50)
        assert sequence.owed == 0
    sequence.prefill(LONG[50:60])
    sequence.mark()
    assert sequence.nearest(55) == 0, "the mark before is replaced"
    same(sequence.step(LONG[60]), alone(engine, LONG[:61], 1))


def test_many_owed_tokens_are_computed_before_the_pass_in_bounded_parts(
    mixing: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = mixing.session.sequence(at(mixing), 704)
    sequence.prefill(LONG[:600])
    rows: list[int] = []
    execute = Pass.execute
    monkeypatch.setattr(Pass, "execute", lambda self: (rows.append(self.rows), execute(self)))
    sequence.rewind(599)
    assert sequence.owed == 599, "one pass leaves one copy, at its end"
    same(sequence.step(3), alone(mixing, [*LONG[:599], 3], 1))
    assert rows[:5] == [128, 128, 128, 128, 599 - 512 + 1]
    sequence.rewind(515)
    assert sequence.owed == 3, "they left copies"


@each("position", [None, 0, 3, 40, 150])
def test_a_copy_continues_as_its_origin_and_both_go_their_way(engine: Engine, position: int | None) -> None:
    batch = engine.session.batch(2, 704)
    origin = batch.join(at(engine))
    origin.prefill(LONG[:150])
    copy = batch.fork(origin, position)
    count = 150 if position is None else position
    assert copy.ids == LONG[:count]
    for place in range(4):
        steps = batch.run([Work(origin, [LONG[150 + place]]), Work(copy, [place])])
        same(steps[0], alone(engine, LONG[: 151 + place], 1))
        same(steps[1], alone(engine, [*LONG[:count], *range(place + 1)], 1))


def test_a_copy_of_a_sequence_that_owes_tokens_owes_them_too(mixing: Engine) -> None:
    batch = mixing.session.batch(2, 704)
    origin = batch.join(at(mixing))
    origin.prefill(LONG[:100])
    origin.rewind(70)
    copy = batch.fork(origin)
    assert (copy.owed, copy.ids) == (70, LONG[:70])
    same(copy.step(9), alone(mixing, [*LONG[:70], 9], 1))
    same(origin.step(8), alone(mixing, [*LONG[:70], 8], 1))


def test_a_sequence_that_follows_another_has_its_states(mixing: Engine) -> None:
    batch = mixing.session.batch(2, 704)
    origin = batch.join(at(mixing))
    origin.prefill(LONG[:60])
    other = batch.fork(origin)
    other.prefill(LONG[100:117])
    origin.prefill(LONG[60:90])
    copy = batch.follow(other, origin)
    assert states(mixing, copy) == states(mixing, origin)
    same(copy.step(4), alone(mixing, [*LONG[:90], 4], 1))


def test_a_sequence_resumes_with_more_room(engine: Engine) -> None:
    batch = engine.session.batch(1, 704)
    sequence = batch.join(at(engine), 160)
    sequence.prefill(LONG[:100])
    sequence.checkpoint()
    sequence.prefill(LONG[100:150])
    larger = batch.resume(sequence, 100, 700)
    assert (larger.ids, larger.owed) == (LONG[:100], 0)
    same(larger.prefill(LONG[300:600], 300), alone(engine, [*LONG[:100], *LONG[300:600]], 300))


def test_a_pass_that_fails_half_way_leaves_every_sequence_as_it_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = engine.session.batch(2, 704)
    first, second = batch.join(at(engine)), batch.join(at(engine, 0.5))
    batch.run([Work(first, LONG[:140]), Work(second, LONG[200:230])])
    execute = Pass.execute

    def broken(self: Pass) -> None:
        execute(self)  # the states are written
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Pass, "execute", broken)
        with pytest.raises(MemoryError):
            batch.run([Work(first, [1]), Work(second, [2, 3])])
    assert (first.ids, second.ids) == (LONG[:140], LONG[200:230])
    assert (first.owed, second.owed) == (0, 30), "a prompt of 140 tokens left a copy at its end, a short one none"
    steps = batch.run([Work(first, LONG[140:143], 3), Work(second, LONG[230:240], 10)])
    same(steps[0], alone(engine, LONG[:143], 3))
    same(steps[1], alone(engine, LONG[200:240], 10, 0.5))


def test_sequences_that_join_go_back_fork_and_leave_are_what_each_is_alone(engine: Engine) -> None:
    """As in `tests/export/fused/test_batches.py`, with copies, marks and repeated tokens."""
    random = np.random.default_rng(9)
    batch = engine.session.batch(4, 400)
    texts: dict[object, list[int]] = {}
    for _ in range(60):
        action = random.random()
        if batch.free and action < 0.35:
            if texts and action < 0.2:
                origin = list(texts)[random.integers(len(texts))]
                position = int(random.integers(len(texts[origin]) + 1))
                texts[batch.fork(origin, position)] = texts[origin][:position]  # type: ignore[arg-type]
            else:
                texts[batch.join(at(engine))] = []
        elif texts and action < 0.42:
            leaver = list(texts)[random.integers(len(texts))]
            batch.leave(leaver)  # type: ignore[arg-type]
            del texts[leaver]
        work = []
        for one, ids in texts.items():
            count = int(random.choice([0, 1, 1, 1, 5, 40]))
            if random.random() < 0.2:
                one.mark()  # type: ignore[attr-defined]
            if 0 < count <= 400 - len(ids):
                work.append(Work(one, [int(token) for token in random.integers(257, size=count)]))  # type: ignore[arg-type]
        if not work:
            continue
        for (sequence, ids, _), step in zip(work, batch.run(work), strict=True):
            texts[sequence] += ids
            assert sequence.ids == texts[sequence]
            whole = engine.session.sequence(at(engine), 704)
            np.testing.assert_array_equal(step.logits, whole.prefill(texts[sequence]).logits)
            np.testing.assert_array_equal(sequence.lengths, whole.lengths)
            assert states(engine, sequence) == states(engine, whole)
            if random.random() < 0.4:
                back = int(random.integers(len(texts[sequence]) + 1))
                sequence.rewind(back)
                del texts[sequence][back:]


def test_a_slot_whose_numbers_were_not_finite_is_clean(engine: Engine) -> None:
    batch = engine.session.batch(1)
    sequence = batch.join(at(engine))
    sequence.prefill(LONG[:30])
    for value in (*sequence.states.values.values(), *sequence.cache.values.values()):
        value.numpy()[:] = np.nan
    batch.leave(sequence, clear=True)
    for value in sequence.states.values.values():
        assert not value.numpy().any()
    same(batch.join(at(engine)).prefill(LONG[:30], 30), alone(engine, LONG[:30], 30))


def test_copies_are_few_and_denser_towards_the_end() -> None:
    copies = Checkpoints()
    copies.add(300, [], wanted=True)
    for position in range(384, 40 * SPACING, SPACING):
        copies.add(position, [], wanted=False)
    places = [place for place in range(40 * SPACING) if copies.at(place) is not None]
    assert len(places) == MOST_COPIES
    assert places[0] == 300, "what was asked for stays"
    assert places[-1] == 39 * SPACING
    gaps = np.diff(places)
    assert gaps[-1] == SPACING
    assert gaps[0] > 4 * SPACING
    copies.cut(3000)
    assert copies.nearest(10**6) <= 3000
    assert copies.nearest(299) == 0
    assert copies.nearest(10**6, SPACING) % SPACING == 0


def test_wanted_copies_are_bounded_too() -> None:
    copies = Checkpoints()
    for position in range(100):
        copies.add(position, [], wanted=True)
    assert sum(copies.at(place) is not None for place in range(100)) == MOST_COPIES
    assert copies.nearest(99) == 99


def test_the_memory_of_states_does_not_grow_with_the_context(
    opened: Callable[[str, bool], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, hybrid = opened("no_attention", True), opened("hybrid", True)
    own = 4 * sum(int(np.prod(shape)) for shape in STATES.values())
    model = plain.manifest.model
    assert state_bytes(model) == own
    assert cache_bytes(model, 1000) == 0
    assert slot_bytes(model, 32, "fp32", 3) == slot_bytes(model, 10**6, "fp32", 3) == 3 * (2 + MOST_COPIES) * own
    both = hybrid.manifest.model
    assert slot_bytes(both, 64, "fp32", 2) == cache_bytes(both, 64, "fp32", 2) + 2 * (2 + MOST_COPIES) * own
    monkeypatch.setattr(memory, "UNASKED_BYTES", 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * (2 + MOST_COPIES) * own)
    assert plain.session.batch(3).free == 3
    with pytest.raises(UserError, match="found 4 sequences of 3072 tokens, whose caches and states take"):
        plain.session.batch(4)


def test_the_cost_of_a_token_counts_its_state_and_no_keys_without_attention(
    opened: Callable[[str, bool], Engine],
) -> None:
    engine = opened("no_attention", True)
    sequence = engine.session.sequence(at(engine, 0.0))
    usages = [sequence.step(token).usage for token in [LONG[0]] * 200]
    assert {one.executed_bytes for one in usages} == {usages[0].executed_bytes}
    skipped = engine.session.sequence(at(engine, 1.0)).step(LONG[0]).usage
    experts = 50 * len(usages[0].experts[0])
    assert usages[0].executed_bytes - skipped.executed_bytes == 100 + 17 + 7 + 20 + experts - 13
    assert usages[0].heads == ((),), "there are no query heads"


def test_a_graph_without_the_states_of_its_manifest_is_refused(tmp_path: Path) -> None:
    from support.graphs.tiny_graph import write_manifest

    folder = write_hybrid(tmp_path / "model", mixes=True)
    layers = load(folder, device="cpu").manifest.model.model_dump()["layers"]
    layers[0]["states"] = {"state": STATES["state"]}
    write_manifest(folder, format_version=3, model={"num_layers": 2, "layers": layers})
    with pytest.raises(UserError, match=r"does not fit its manifest: past_conv\.0, present_conv\.0|is damaged"):
        Session(folder, device="cpu")
