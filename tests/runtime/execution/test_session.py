"""The session compared with the expected outputs of the tiny graph, and the input that it refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.graphs.tiny_graph import CONTEXT, EOS, L, V, expected, graph, write_model

from adaptive_lm.runtime import Batch, Dial, Engine, Sequence, Session, Thresholds, UserError
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.execution.binding import Pass
from adaptive_lm.runtime.execution.session import SMALL_BYTES, suitable_threads, usable_cores

IDS = [5, 100, 7, 200, 33, 250, 0, 1, 99]
POINTS = [(0.5, 0.4, 1.0), (0.9, 0.5, 0.5), (1.0, 0.0, 1.0), (0.01, 1.0, 0.0)]


@pytest.fixture
def sequence(engine: Engine) -> Sequence:
    return engine.session.sequence(capacity=len(IDS))


def at(session: Session, point: tuple[float, float, float]) -> Thresholds:
    dial = Dial(router_top_p=point[0], depth_threshold=point[1], exit_threshold=point[2])
    return resolve(session.manifest, dial)


@pytest.mark.parametrize("point", POINTS)
def test_a_prompt_gives_what_the_graph_means(
    engine: Engine, sequence: Sequence, point: tuple[float, float, float]
) -> None:
    sequence.thresholds = at(engine.session, point)
    step = sequence.prefill(IDS, num_logits=len(IDS))
    logits, selected, run, exits = expected(IDS, *point)
    np.testing.assert_allclose(step.logits, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(step.routes.selected_experts, selected)
    np.testing.assert_array_equal(step.routes.layers_run, run)
    np.testing.assert_array_equal(step.routes.exit_layer, exits)
    np.testing.assert_array_equal(step.routes.positions, np.arange(len(IDS)))


@pytest.mark.parametrize("cut", [0, 1, 4, 8])
def test_a_prompt_and_its_tokens_one_by_one_are_the_same(engine: Engine, sequence: Sequence, cut: int) -> None:
    sequence.thresholds = at(engine.session, POINTS[1])
    logits, selected, _, _ = expected(IDS, *POINTS[1])
    if cut:
        sequence.prefill(IDS[:cut])
    for t in range(cut, len(IDS)):
        step = sequence.step(IDS[t])
        np.testing.assert_allclose(step.logits[0], logits[t], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(step.routes.selected_experts[:, 0], selected[:, t])
        assert step.routes.keys[:, 0].tolist() == [t + 1] * L
    assert sequence.position == len(IDS)


def test_only_the_wanted_logits_are_computed(sequence: Sequence) -> None:
    logits, *_ = expected(IDS, 0.5, 0.4, 1.0)
    assert sequence.prefill(IDS).logits.shape == (1, V)
    sequence.rewind(0)
    np.testing.assert_allclose(sequence.prefill(IDS, num_logits=3).logits, logits[-3:], rtol=1e-5, atol=1e-5)


def test_a_new_sequence_sees_nothing_of_the_one_before(sequence: Sequence) -> None:
    sequence.prefill([250] * len(IDS))
    sequence.rewind(0)
    logits, *_ = expected(IDS, 0.5, 0.4, 1.0)
    np.testing.assert_allclose(sequence.prefill(IDS).logits[0], logits[-1], rtol=1e-5, atol=1e-5)


def test_logits_of_an_earlier_step_stay_what_they_were(sequence: Sequence) -> None:
    first = sequence.step(IDS[0]).logits
    kept = first.copy()
    sequence.step(IDS[1])
    np.testing.assert_array_equal(first, kept)


def test_the_cache_is_written_in_place(sequence: Sequence) -> None:
    """Past and present are one memory: what a step wrote is there, and nothing else moved."""
    key = sequence.cache.values["key", 1]
    address = key.data_ptr()
    sequence.prefill(IDS[:3])
    sequence.step(IDS[3])
    assert key.data_ptr() == address
    np.testing.assert_array_equal(key.numpy()[0, 0, :4, 0], IDS[:4])


def test_buffers_are_bound_once_per_generation(sequence: Sequence, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence.prefill(IDS[:2])
    made: list[object] = []
    monkeypatch.setattr("adaptive_lm.runtime.execution.binding.Pass", lambda *args: made.append(args))
    for token in IDS[2:]:
        sequence.step(token)
    assert not made


def test_rebinding_inputs_at_every_step_changes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test on a CPU what CUDA needs: there, binding copies an input to the device."""
    logits, *_ = expected(IDS, 0.5, 0.4, 1.0)
    bound: list[str] = []
    bind = Pass.bind_inputs
    sequence = Batch(replace(engine.session.graph, rebinds=True)).join()
    monkeypatch.setattr(Pass, "bind_inputs", lambda one: (bound.append("all"), bind(one)))
    for t, token in enumerate(IDS):
        np.testing.assert_allclose(sequence.step(token).logits[0], logits[t], rtol=1e-5, atol=1e-5)
    assert len(bound) == len(IDS)


def test_thresholds_are_copied_and_hold_from_the_next_pass_on(engine: Engine, sequence: Sequence) -> None:
    changed = at(engine.session, POINTS[1])
    sequence.step(IDS[0])
    sequence.thresholds = changed
    changed.router_top_p[:] = 1
    sequence.rewind(0)
    step = sequence.prefill(IDS)
    np.testing.assert_array_equal(step.routes.selected_experts, expected(IDS, *POINTS[1])[1])


@pytest.mark.parametrize("wrong", [-1, V, 2**40])
def test_a_token_outside_the_vocabulary_is_named(sequence: Sequence, wrong: int) -> None:
    with pytest.raises(UserError, match=f"found token {wrong}, this model has 0 to {V - 1}"):
        sequence.prefill([1, wrong])
    with pytest.raises(UserError, match=f"found token {wrong}"):
        sequence.step(wrong)
    assert sequence.position == 0, "nothing was computed"


def test_no_tokens_are_refused(sequence: Sequence) -> None:
    with pytest.raises(UserError, match="no tokens"):
        sequence.prefill([])


def test_more_tokens_than_there_is_room_for_give_both_numbers(engine: Engine) -> None:
    sequence = engine.session.sequence()
    sequence.prefill([1] * CONTEXT)
    with pytest.raises(UserError, match=f"found {CONTEXT + 1} tokens, there is room for {CONTEXT}"):
        sequence.step(1)
    with pytest.raises(UserError, match=f"found {CONTEXT + 1} tokens, this model holds 1 to {CONTEXT}"):
        engine.session.sequence(capacity=CONTEXT + 1)


def test_a_graph_that_does_not_fit_its_manifest_is_refused(copy: Path) -> None:
    proto = graph()
    extra = onnx.helper.make_tensor_value_info("surprise", onnx.TensorProto.FLOAT, [1])
    proto.graph.input.append(extra)
    with pytest.raises(UserError, match="does not fit its manifest: surprise"):
        Session(write_model(copy, proto), device="cpu", threads=1)


def test_logits_of_another_vocabulary_give_both_sizes(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", graph(vocab=258))
    with pytest.raises(UserError, match="logits for a vocabulary of 258, its manifest says 260"):
        Session(folder, device="cpu", threads=1)


def test_a_graph_that_onnx_runtime_refuses_is_an_error_for_people(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proto = graph()
    proto.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(UserError, match=r"model\.onnx does not load: .*NoSuchOperator"):
        Session(write_model(copy, proto), device="cpu", threads=1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("threads", [0, -2])
def test_fewer_than_one_thread_is_refused(model: Path, threads: int) -> None:
    with pytest.raises(UserError, match=f"found threads {threads}, expected at least 1"):
        Session(model, threads=threads)


def test_skipped_tokens_are_absent_from_a_cache_without_them(changed: Callable[..., Path]) -> None:
    """Under `none` the keys that a token sees are those of the tokens that ran the layer, itself among them."""
    session = Session(changed(model={"skipped_kv": "none"}), device="cpu", threads=1)
    routes = session.sequence(at(session, (0.5, 0.5, 0.6))).prefill(IDS).routes
    np.testing.assert_array_equal(routes.keys, expected(IDS, 0.5, 0.5, 0.6)[2].cumsum(axis=1))
    assert EOS not in IDS


def test_a_small_model_takes_one_thread_and_a_large_one_every_core(engine: Engine, model: Path) -> None:
    small = engine.manifest
    table = small.costs.weight_bytes.model_copy(update={"lm_head": float(SMALL_BYTES)})
    large = small.model_copy(update={"costs": small.costs.model_copy(update={"weight_bytes": table})})
    assert suitable_threads(small, cores=3) == 1
    assert suitable_threads(large, cores=3) == 3
    assert suitable_threads(large) == usable_cores()
    assert Session(model, device="cpu").threads == 1
    assert Session(model, device="cpu", threads=2).threads == 2
