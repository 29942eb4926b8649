"""The cache is written in place, at the right places, and nowhere else."""

import numpy as np
import pytest
from reference import model as reference
from support.cases import each
from support.graphs.bare_graph import MODELS, Sequences, graph_of, model_of, weights_of
from support.models import ADAPTS_DEPTH, as_arrays, busy_thresholds, even_thresholds, tiny_ids

from adaptive_lm.export.proof.parity import TOLERANCE
from adaptive_lm.train.model import ThresholdTensors

FILL, B, STEPS = 7.0, 3, 10
POLICIES = ["top_p", *ADAPTS_DEPTH, "top_k_project"]


def plain_caches(name: str, ids: np.ndarray, limits: ThresholdTensors) -> tuple[reference.Sequence, reference.Result]:
    """Run the plain model on one text (1, T)."""
    model = model_of(name)
    arrays = as_arrays(limits)
    weights = {key: np.asarray(value, np.float64) for key, value in weights_of(model).items()}
    result = reference.forward(weights, model.config, ids, arrays)
    sequence = reference.Sequence(weights, model.config, arrays, np.float64)
    for t in range(ids.shape[1]):
        sequence.step(int(ids[0, t]), t, result, 0)
    return sequence, result


@each("name", POLICIES)
def test_the_buffer_holds_the_keys_of_the_plain_model_and_nothing_else_changed(name: str) -> None:
    ids, limits = tiny_ids(2, batch=B, time=STEPS).numpy(), busy_thresholds(MODELS[name])
    sequences = Sequences(graph_of(name), B, fill=FILL)
    sequences.steps(ids, *[limits] * B)
    found = sequences.content()
    for b in range(B):
        plain, result = plain_caches(name, ids[b : b + 1], limits)
        np.testing.assert_array_equal(sequences.lengths[:, b], result.cache_lengths[:, 0])
        for layer, length in enumerate(sequences.lengths[:, b]):
            if not MODELS[name].attends(layer):  # it has a state: test_mixers.py
                continue
            for kind, expected in (("key", plain.keys[layer]), ("value", plain.values[layer])):
                written = found[f"{kind}.{layer}"][b, :, :length].swapaxes(0, 1)  # (length, K, W)
                assert len(expected) == length
                if length:
                    np.testing.assert_allclose(written, np.stack(expected), rtol=0, atol=TOLERANCE["fp32"])


@each("name", POLICIES)
def test_a_step_writes_one_place_of_each_sequence_that_runs_the_layer(name: str) -> None:
    """Tokens in `project` write their keys and values even if they skip the layer; all other bytes stay unchanged."""
    project = MODELS[name].depth.skipped_kv == "project" or not MODELS[name].adapts_depth
    ids, limits = tiny_ids(2, batch=B, time=STEPS).numpy(), busy_thresholds(MODELS[name])
    sequences = Sequences(graph_of(name), B, fill=FILL)
    skipped = 0
    for t in range(STEPS):
        lengths, before = sequences.lengths, sequences.content()
        graph_out = sequences.run(ids[:, t : t + 1], *[limits] * B)
        for key, after in sequences.content().items():
            layer = int(key.rsplit(".", 1)[1])
            if not MODELS[name].attends(layer):
                continue
            changed = (after != before[key]).any((1, 3))  # (B, C)
            for b in range(B):
                ran = bool(graph_out.layers_run[layer, b, 0])
                skipped += not ran
                if ran or project:
                    assert np.flatnonzero(changed[b]).tolist() == [lengths[layer, b]], (key, b)
                    assert graph_out.new_lengths[layer, b] == lengths[layer, b] + 1
                else:
                    # an empty cell of a batch is written behind the end, where the next token overwrites it
                    assert set(np.flatnonzero(changed[b])) <= {lengths[layer, b]}, (key, b)
                    assert graph_out.new_lengths[layer, b] == lengths[layer, b]
    assert skipped or not MODELS[name].adapts_depth or not MODELS[name].has_attention


@each("name", [name for name in ADAPTS_DEPTH if MODELS[name].depth.skipped_kv == "none"])
def test_a_layer_that_no_token_runs_leaves_its_cache_unchanged(name: str) -> None:
    layers = MODELS[name].num_layers
    no_token = even_thresholds(layers, depth=3.0, leave=-0.1)
    sequences = Sequences(graph_of(name), B, fill=FILL)
    graph_out = sequences.steps(tiny_ids(2, batch=B, time=3).numpy(), *[no_token] * B)
    idle = np.flatnonzero(~graph_out.layers_run.any((1, 2)))
    assert len(idle) >= 1
    for layer in idle:
        for kind in ("key", "value") if MODELS[name].attends(layer) else ():
            assert (sequences.content()[f"{kind}.{layer}"] == FILL).all()
        for kind in MODELS[name].state_shapes(layer):
            assert (sequences.content()[f"{kind}.{layer}"] == 0).all()
        assert (graph_out.new_lengths[layer] == 0).all()


def test_without_keys_of_skipped_tokens_the_layers_hold_different_numbers() -> None:
    for name, differ in (("both_none", True), ("both_project", False)):
        sequences = Sequences(graph_of(name))
        sequences.run(tiny_ids(2, batch=1, time=17).numpy(), busy_thresholds(MODELS[name]))
        assert (len(set(sequences.lengths[:, 0])) > 1) is differ
        assert sequences.lengths[0, 0] == 17


@pytest.mark.parametrize("name", ["both_none", "both_project"])
def test_a_prompt_writes_its_keys_side_by_side(name: str) -> None:
    ids, limits = tiny_ids(2, batch=1, time=17).numpy(), busy_thresholds(MODELS[name])
    sequences = Sequences(graph_of(name), fill=FILL)
    sequences.run(ids, limits)
    plain, _ = plain_caches(name, ids, limits)
    for layer, length in enumerate(sequences.lengths[:, 0]):
        for kind, expected in (("key", plain.keys[layer]), ("value", plain.values[layer])):
            content = sequences.content()[f"{kind}.{layer}"][0]  # (K, C, W)
            written = content[:, :length].swapaxes(0, 1)
            np.testing.assert_allclose(written, np.stack(expected), rtol=0, atol=TOLERANCE["fp32"])
            assert (content[:, length:] == FILL).all()
