"""Sequences computed in one pass of the graph of our operators: each has the bits that it has alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cases import slowly_all
from support.operators.our_library import needs_library
from support.runs import write_run
from support.twins import Twins

from adaptive_lm.export.package import write_files
from adaptive_lm.export.source import read
from adaptive_lm.runtime import Dial, Session, Step, Thresholds, Work
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.execution.binding import Pass
from adaptive_lm.runtime.format.manifest import KV, Precision, Precisions

pytestmark = needs_library
KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "project": {"depth": {"layers_share": 0.5, "skipped_kv": "project", "exit_layers": [0, 1]}},
    "heads": {"heads": {"routing": "top_p", "heads_per_token": 2}},
    "cope": {"heads": {"routing": "adaptive"}, "attention": {"positions": "cope", "max_positions": 8, "window": 8}},
}
FORMS: list[tuple[Precision, KV]] = [("fp32", "fp32"), ("bf16", "fp16"), ("int8", "fp32"), ("int4", "int8")]


def session_of(folder: Path, kind: str, precision: Precision, kv: KV = "fp32") -> Session:
    source = read(write_run(folder / "runs" / "tiny", **KINDS[kind]))
    (folder / "model").mkdir()
    manifest = write_files(source, folder / "model", Precisions.of(precision), ["cpu"], kv)
    return Session(folder / "model", manifest, device="cpu", target="cpu", threads=1, verify=False)


def same(one: Step, other: Step) -> None:
    np.testing.assert_array_equal(one.logits, other.logits)
    for name in ("selected_experts", "layers_run", "exit_layer", "keys", "positions", "exits_open"):
        np.testing.assert_array_equal(getattr(one.routes, name), getattr(other.routes, name), err_msg=name)
    for name in ("selected_heads", "windows"):
        if getattr(one.routes, name) is not None:
            np.testing.assert_array_equal(getattr(one.routes, name), getattr(other.routes, name), err_msg=name)


def at(session: Session, top_p: float) -> Thresholds:
    return resolve(session.manifest, Dial(router_top_p=top_p))


@pytest.mark.parametrize(("kind", "form"), slowly_all(KINDS, FORMS))
def test_whatever_is_computed_beside_it_a_sequence_has_the_same_bits(
    tmp_path: Path, kind: str, form: tuple[Precision, KV], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random work for random sequences: chunks, single tokens, drafts that are taken back, copies, new texts."""
    session = session_of(tmp_path, kind, *form)
    assert session.graph.mixes_sequences
    passes: list[int] = []
    execute = Pass.execute
    monkeypatch.setattr(Pass, "execute", lambda self: (passes.append(self.rows), execute(self)))
    twins = Twins(session, lambda top_p: at(session, top_p), seed=3)
    for _ in range(70):
        twins.change()
        work = twins.work()
        if not work:
            continue
        done = len(passes)
        steps = twins.batch.run(work)
        assert len(passes) - done <= 2, "sequences are computed together"
        for (sequence, tokens, number), step in zip(work, steps, strict=True):
            twin = twins.of[sequence]
            same(step, twin.prefill(tokens, number))
            np.testing.assert_array_equal(sequence.lengths, twin.lengths)
            if twins.random.random() < 0.3:
                back = max(sequence.position - int(twins.random.integers(1, 30)), 0)
                if sequence.can_rewind(back):  # several times in a row it may be too far for a ring
                    sequence.rewind(back)
                    twin.rewind(back)


@pytest.mark.parametrize(("kind", "form"), slowly_all(KINDS, FORMS))
def test_a_sequence_that_follows_another_has_its_bits(tmp_path: Path, kind: str, form: tuple[Precision, KV]) -> None:
    """Two texts that share a beginning go their ways, until one becomes a copy of the other, again and again."""
    session = session_of(tmp_path, kind, *form)
    random = np.random.default_rng(5)
    batch = session.batch(2, 224)

    def ids(count: int) -> list[int]:
        return random.integers(session.manifest.model.tokenizer_size, size=count).tolist()  # type: ignore[no-any-return]

    first = batch.join(at(session, 0.6))
    first.prefill(ids(21), 0)
    pair = [first, batch.fork(first)]
    for turn in range(14):
        for one in pair:
            one.prefill(ids(int(random.integers(1, 20))), 0)
        back = pair[0].position - int(random.integers(1, 8))
        if pair[0].can_rewind(back):
            pair[0].rewind(back)
        random.shuffle(pair)  # type: ignore[arg-type]
        if turn == 7:
            pair[0].thresholds = at(session, 1.0)
        copy = batch.follow(pair[0], pair[1])
        assert copy.ids == pair[1].ids
        np.testing.assert_array_equal(copy.lengths, pair[1].lengths)
        fresh = session.sequence(copy.thresholds, 224)
        fresh.prefill(copy.ids, 0)
        token = ids(1)[0]
        wanted = fresh.step(token)
        steps = batch.run([Work(one, [token]) for one in pair])
        same(steps[0], wanted)
        same(steps[1], wanted)
        for one in pair:
            one.rewind(one.position - 1)
        if copy.position > 160:
            break
    assert copy.position > 100
