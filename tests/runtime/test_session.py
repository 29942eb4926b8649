"""The session compared with the expected outputs of the tiny graph, and the input that it refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.tiny_graph import CONTEXT, EOS, L, V, expected, graph, write_model

from adaptive_lm.runtime import Dial, Engine, Session, UserError
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.execution.session import SMALL_BYTES, suitable_threads, usable_cores

IDS = [5, 100, 7, 200, 33, 250, 0, 1, 99]
POINTS = [(0.5, 0.4, 1.0), (0.9, 0.5, 0.5), (1.0, 0.0, 1.0), (0.01, 1.0, 0.0)]


@pytest.fixture
def session(engine: Engine) -> Session:
    engine.session.reset(len(IDS))
    engine.session.set_thresholds(resolve(engine.manifest, Dial()))
    return engine.session


def to(session: Session, point: tuple[float, float, float]) -> None:
    dial = Dial(router_top_p=point[0], depth_threshold=point[1], exit_threshold=point[2])
    session.set_thresholds(resolve(session.manifest, dial))


@pytest.mark.parametrize("point", POINTS)
def test_a_prompt_gives_what_the_graph_means(session: Session, point: tuple[float, float, float]) -> None:
    to(session, point)
    step = session.prefill(IDS, num_logits=len(IDS))
    logits, selected, run, exits = expected(IDS, *point)
    np.testing.assert_allclose(step.logits, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(step.routes.selected_experts, selected)
    np.testing.assert_array_equal(step.routes.layers_run, run)
    np.testing.assert_array_equal(step.routes.exit_layer, exits)
    np.testing.assert_array_equal(step.routes.positions, np.arange(len(IDS)))


@pytest.mark.parametrize("cut", [0, 1, 4, 8])
def test_a_prompt_and_its_tokens_one_by_one_are_the_same(session: Session, cut: int) -> None:
    to(session, POINTS[1])
    logits, selected, _, _ = expected(IDS, *POINTS[1])
    if cut:
        session.prefill(IDS[:cut])
    for t in range(cut, len(IDS)):
        step = session.step(IDS[t])
        np.testing.assert_allclose(step.logits[0], logits[t], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(step.routes.selected_experts[:, 0], selected[:, t])
        assert step.routes.keys[:, 0].tolist() == [t + 1] * L
    assert session.position == len(IDS)


def test_only_the_wanted_logits_are_computed(session: Session) -> None:
    logits, *_ = expected(IDS, 0.5, 0.4, 1.0)
    assert session.prefill(IDS).logits.shape == (1, V)
    session.reset(len(IDS))
    np.testing.assert_allclose(session.prefill(IDS, num_logits=3).logits, logits[-3:], rtol=1e-5, atol=1e-5)


def test_a_new_sequence_sees_nothing_of_the_one_before(session: Session) -> None:
    session.prefill([250] * len(IDS))
    session.reset(len(IDS))
    logits, *_ = expected(IDS, 0.5, 0.4, 1.0)
    np.testing.assert_allclose(session.prefill(IDS).logits[0], logits[-1], rtol=1e-5, atol=1e-5)


def test_logits_of_an_earlier_step_stay_what_they_were(session: Session) -> None:
    first = session.step(IDS[0]).logits
    kept = first.copy()
    session.step(IDS[1])
    np.testing.assert_array_equal(first, kept)


def test_the_cache_is_written_in_place(session: Session) -> None:
    """Past and present are one memory: what a step wrote is there, and nothing else moved."""
    key = session.cache.values["key", 1]
    address = key.data_ptr()
    session.prefill(IDS[:3])
    session.step(IDS[3])
    assert key.data_ptr() == address
    np.testing.assert_array_equal(key.numpy()[0, 0, :4, 0], IDS[:4])


def test_buffers_are_bound_once_per_generation(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.prefill(IDS[:2])
    made: list[object] = []
    monkeypatch.setattr("adaptive_lm.runtime.execution.session.Pass", lambda *args: made.append(args))
    for token in IDS[2:]:
        session.step(token)
    assert not made


def test_rebinding_inputs_at_every_step_changes_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test on a CPU what CUDA needs: there, binding copies an input to the device."""
    logits, *_ = expected(IDS, 0.5, 0.4, 1.0)
    bound: list[str] = []
    bind = session.decode.bind_inputs
    session.decode.rebinds = True
    monkeypatch.setattr(session.decode, "bind_inputs", lambda: (bound.append("all"), bind()))
    for t, token in enumerate(IDS):
        np.testing.assert_allclose(session.step(token).logits[0], logits[t], rtol=1e-5, atol=1e-5)
    assert len(bound) == len(IDS)


def test_thresholds_outlive_a_larger_cache(session: Session) -> None:
    to(session, POINTS[1])
    session.reset(CONTEXT)
    step = session.prefill(IDS)
    np.testing.assert_array_equal(step.routes.selected_experts, expected(IDS, *POINTS[1])[1])


@pytest.mark.parametrize("wrong", [-1, V, 2**40])
def test_a_token_outside_the_vocabulary_is_named(session: Session, wrong: int) -> None:
    with pytest.raises(UserError, match=f"found token {wrong}, this model has 0 to {V - 1}"):
        session.prefill([1, wrong])
    with pytest.raises(UserError, match=f"found token {wrong}"):
        session.step(wrong)
    assert session.position == 0, "nothing was computed"


def test_no_tokens_are_refused(session: Session) -> None:
    with pytest.raises(UserError, match="no tokens"):
        session.prefill([])


def test_more_tokens_than_there_is_room_for_give_both_numbers(session: Session) -> None:
    session.reset(CONTEXT)
    session.prefill([1] * CONTEXT)
    with pytest.raises(UserError, match=f"found {CONTEXT + 1} tokens, there is room for {CONTEXT}"):
        session.step(1)
    with pytest.raises(UserError, match=f"found {CONTEXT + 1} tokens, this model holds 1 to {CONTEXT}"):
        session.reset(CONTEXT + 1)


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
    to(session, (0.5, 0.5, 0.6))
    routes = session.prefill(IDS).routes
    np.testing.assert_array_equal(routes.keys, expected(IDS, 0.5, 0.5, 0.6)[2].cumsum(axis=1))
    assert EOS not in IDS


def test_a_small_model_takes_one_thread_and_a_large_one_every_core(session: Session, model: Path) -> None:
    small = session.manifest
    table = small.costs.weight_bytes.model_copy(update={"lm_head": float(SMALL_BYTES)})
    large = small.model_copy(update={"costs": small.costs.model_copy(update={"weight_bytes": table})})
    assert suitable_threads(small, cores=3) == 1
    assert suitable_threads(large, cores=3) == 3
    assert suitable_threads(large) == usable_cores()
    assert Session(model, device="cpu").threads == 1
    assert Session(model, device="cpu", threads=2).threads == 2
