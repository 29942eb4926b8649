"""Contextual positions in the graph: gates are summed in order of the tokens, wherever they are in the cache."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from support.cases import each
from support.graphs.bare_graph import (
    MODELS,
    Graph,
    Sequences,
    everything_on,
    graph_of,
    initializers,
    model_of,
    nodes,
    proto_of,
    weights_of,
)
from support.models import busy_thresholds, judge, tiny_ids, variant

from adaptive_lm.export.model.signature import graph_inputs
from adaptive_lm.export.model.transformer import build
from adaptive_lm.export.proof.parity import TOLERANCE
from adaptive_lm.train.model import Transformer

FP32 = TOLERANCE["fp32"]
COPE = [name for name, config in MODELS.items() if "cope" in {config.positions_of(i) for i in range(config.num_layers)}]


def test_the_models_here_have_every_kind_of_cache_beneath_them() -> None:
    assert any(MODELS[name].has_windows for name in COPE)
    assert {MODELS[name].depth.skipped_kv for name in COPE if MODELS[name].adapts_depth} == {"none", "project"}
    assert any(len({MODELS[name].positions_of(i) for i in range(4)}) == 3 for name in COPE)


@each("longest", [1, 5, 28])
@each("name", COPE)
def test_prompts_and_tokens_give_what_the_plain_model_gives(name: str, longest: int) -> None:
    ids, limits = tiny_ids(3, batch=1, time=28), busy_thresholds(MODELS[name])
    plain = judge(model_of(name), ids, limits)
    assert not plain.near_ties().any(), "choose another seed: these decisions may fall either way"
    graph_out = Sequences(graph_of(name), longest=longest, fill=1e3).parts(ids.numpy(), longest, limits)
    np.testing.assert_allclose(graph_out.logits, plain.logits, rtol=0, atol=FP32)


def test_scores_are_multiplied_once_and_nothing_is_turned() -> None:
    """docs/decisions/0011: with a bias into the Attention operator, queries and keys would be multiplied twice."""
    operators = {node.op_type for node in nodes(proto_of("cope"))}
    assert operators.isdisjoint({"Attention", "RotaryEmbedding"})
    assert not any(tensor.name.startswith("rotary") for tensor in initializers(proto_of("cope")))
    products = [
        node.name for node in nodes(proto_of("cope")) if node.op_type == "MatMul" and "layers.1/att" in node.name
    ]
    assert [name.rsplit("/", 1)[1] for name in products] == ["scores", "position_logits", "position_steps", "mixed"]


def test_only_layers_that_tokens_skip_and_still_write_to_have_a_third_cache() -> None:
    for name, layers in (("cope_project", [1, 2, 3]), ("cope_none", []), ("cope", []), ("everything_project", [1, 3])):
        caches = [key for key in graph_inputs(MODELS[name]) if key.startswith("past_counted")]
        assert caches == [f"past_counted.{i}" for i in layers], name


def test_a_token_that_skipped_is_attended_to_and_not_counted() -> None:
    """The third cache matters: with every cell counted the output differs."""
    name = "cope_project"
    ids, limits = tiny_ids(2, batch=1, time=20), busy_thresholds(MODELS[name])
    sequences = Sequences(graph_of(name))
    graph_out = sequences.steps(ids.numpy(), limits)
    counted = {key: value for key, value in sequences.content().items() if key.startswith("counted")}
    for key, value in counted.items():
        layer = int(key.rsplit(".", 1)[1])
        np.testing.assert_array_equal(value[0, 0, :20, 0], graph_out.layers_run[layer, 0])
        assert 0 < value.sum() < 20
    everyone = Sequences(graph_of(name))
    for t in range(20):
        for key in counted:
            everyone.caches[key].numpy()[:, :, :t] = 1
        other = everyone.run(ids.numpy()[:, t : t + 1], limits)
        if not np.allclose(other.logits[0, 0], graph_out.logits[0, t], rtol=0, atol=100 * FP32):
            return
    pytest.fail("no token noticed that skipped ones were counted")


@pytest.mark.parametrize("positions", [2, 3, 40])
def test_positions_are_capped_at_the_last_one(positions: int) -> None:
    config = variant(attention={"positions": "cope", "max_positions": positions})
    model = Transformer(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 1.0 if "position" in name else 0.3
            weight.copy_(scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    ids, limits = tiny_ids(2, batch=1, time=24), everything_on(config)
    with torch.no_grad():
        expected = model(ids, limits).logits.numpy()
    graph_out = Sequences(Graph(build(config, weights_of(model)), config)).run(ids.numpy(), limits)
    np.testing.assert_allclose(graph_out.logits, expected, rtol=0, atol=FP32 * max(1, float(np.std(expected))))


def test_the_embedding_stands_as_it_is_and_the_steps_between_positions_are_derived() -> None:
    written = {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers(proto_of("cope"))}
    name = "layers.2.attention.position_embedding"
    embedding = weights_of(model_of("cope"))[name]
    np.testing.assert_array_equal(written[name], embedding)
    steps = written[f"{name}.steps"].T
    np.testing.assert_array_equal(steps[:-1], np.diff(embedding, axis=0))
    assert (steps[-1] == 0).all(), "beyond the last position there is none"
