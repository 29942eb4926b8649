"""The graph of the target cuda on the CPU provider, which has all of its operators: torch's and portable decisions."""

from functools import cache

import numpy as np
import pytest
import torch
from support.cases import each, each_covered
from support.graphs.bare_graph import (
    COVER,
    EVERYTHING,
    MODELS,
    Graph,
    Sequences,
    everything_on,
    graph_of,
    joined,
    model_of,
    nodes,
    row,
    same_decisions,
    weights_of,
)
from support.models import BIASES, LONGER, busy_thresholds, decisions, judge, season, tiny_ids, variant

from adaptive_lm.export.cuda.attention import is_grouped
from adaptive_lm.export.cuda.transformer import build
from adaptive_lm.export.proof.judge import rounded_model
from adaptive_lm.export.proof.parity import TOLERANCE
from adaptive_lm.runtime.format.manifest import Precisions
from adaptive_lm.train.model import Transformer

FP32, HALF = Precisions.of("fp32"), Precisions.of("fp16")
T = 24
WIDE = {"expert_dim": 24}
HEADS = {"head_dim": 16}
WIDE_ROPES = (
    {"scaling": {"kind": "llama3", **LONGER}},
    {"share": 0.5, "scaling": {"kind": "yarn", **LONGER}},
    {"share": 0.25},  # 8 components, which GroupQueryAttention does not rotate
    {"theta": 500.0},
)
FUSED = {
    "top_p": variant(ffn=WIDE, **HEADS),
    "raw_weights": variant(ffn={**WIDE, "renormalize": False}, **HEADS),
    "top_k": variant(ffn={**WIDE, "routing": "top_k", "experts_per_token": 2}, **HEADS),
    "dense": variant(ffn={"routing": "dense", "dim": 40}, **HEADS),
    "shared_tied": variant(ffn={**WIDE, "shared_expert_dim": 20}, tie_embeddings=True, **HEADS),
    "no_positions": variant(ffn=WIDE, attention={"positions": "none"}, **HEADS),
    "one_kv_head": variant(ffn=WIDE, num_kv_heads=1, **HEADS),
    "many_experts": variant(ffn={**WIDE, "num_experts": 20}, **HEADS),
    "project": variant(ffn=WIDE, **EVERYTHING, **HEADS),
    "exit_router_project": variant(ffn=WIDE, depth={**EVERYTHING["depth"], "exit_criterion": "router"}, **HEADS),
    "cope_project": variant(ffn=WIDE, attention={"positions": "cope", "max_positions": 6}, **EVERYTHING, **HEADS),
    "layer_norm": variant(norm="layer", ffn=WIDE, **HEADS),
    "post": variant(norm_place="post", ffn={**WIDE, "shared_expert_dim": 20}, **HEADS),
    "sandwich_project": variant(
        norm="layer", norm_place="sandwich", logits_softcap=6.0, embedding_scale=2.0, ffn=WIDE, **EVERYTHING, **HEADS
    ),
    "parallel_learned": variant(parallel_residual=True, ffn=WIDE, attention={"positions": "learned"}, **HEADS),
    "none": variant(ffn=WIDE, depth={**EVERYTHING["depth"], "skipped_kv": "none"}, **HEADS),
    "qk_norm_none": variant(ffn=WIDE, attention={"qk_norm": "none", **BIASES}, **HEADS),
    "qk_norm_full": variant(ffn=WIDE, attention={"qk_norm": "full", **BIASES}, **HEADS),
    "ropes": variant(ffn=WIDE, attention={"rope": WIDE_ROPES}, head_dim=32),
    "softcap": variant(ffn=WIDE, attention={"softcap": 2.0}, **HEADS),
    "softcap_project": variant(ffn=WIDE, attention={"softcap": 2.0, "qk_norm": "full"}, **EVERYTHING, **HEADS),
    "capped": variant(
        ffn={**WIDE, "num_experts": 8, "most_experts": 3, "shared_expert_dim": 20, "shared_gate": True,
             "dense_layers": (1,), "dim": 24}, **HEADS,
    ),
    "sigmoid_capped": variant(
        ffn={**WIDE, "num_experts": 8, "most_experts": 4, "score": "sigmoid", "selection_bias": True,
             "renormalize": False}, **HEADS,
    ),
    "gelu": variant(ffn={**WIDE, "activation": "gelu", "most_experts": 3}, **HEADS),
}  # fmt: skip
"""Models of shapes that the contrib operators take."""


@cache
def fused_model(name: str) -> Transformer:
    model = Transformer(FUSED[name])
    season(model, seed=list(FUSED).index(name))
    return model.eval()


@cache
def graph_for_cuda(name: str, precisions: Precisions = FP32) -> Graph:
    return Graph(build(FUSED[name], weights_of(fused_model(name)), precisions), FUSED[name])


@cache
def plain_shape(name: str) -> Graph:
    return Graph(build(MODELS[name], weights_of(model_of(name))), MODELS[name])


def op_types(graph: Graph) -> list[str]:
    return [node.op_type for node in nodes(graph.proto)]


@each_covered("name", MODELS, COVER)
def test_every_mechanism_decides_as_torch_and_the_portable_graph(name: str) -> None:
    limits, prompt = busy_thresholds(MODELS[name]), tiny_ids(seed=2, batch=1, time=T)
    with torch.no_grad():
        out = model_of(name)(prompt, limits)
    graph_out = Sequences(plain_shape(name)).run(prompt.numpy(), limits)
    portable = Sequences(graph_of(name)).run(prompt.numpy(), limits)
    for decision, torch_says in decisions(out).items():
        np.testing.assert_array_equal(getattr(graph_out, decision), torch_says.numpy(), err_msg=decision)
    same_decisions(graph_out, portable)
    np.testing.assert_array_equal(graph_out.new_lengths, portable.new_lengths)
    tolerance = (20 if MODELS[name].has_states else 1) * TOLERANCE["fp32"]  # norms of heads amplify rounding (0048)
    for expected in (out.logits.numpy(), portable.logits):
        np.testing.assert_allclose(graph_out.logits, expected, rtol=0, atol=tolerance)


@each("name", FUSED)
def test_the_contrib_operators_decide_as_the_plain_model(name: str) -> None:
    limits, prompt = busy_thresholds(FUSED[name]), tiny_ids(seed=2, batch=1, time=T)
    plain = judge(fused_model(name), prompt, limits)
    assert not plain.near_ties().any(), "choose another seed: these decisions may fall either way"
    graph_out = Sequences(graph_for_cuda(name)).run(prompt.numpy(), limits)
    same_decisions(graph_out, plain)
    np.testing.assert_allclose(graph_out.logits, plain.logits, rtol=0, atol=TOLERANCE["fp32"])
    assert ("MoE" in op_types(graph_for_cuda(name))) is (name not in ("dense", "many_experts", "gelu"))


@each("name", FUSED)
def test_fp16_computes_nearly_what_torch_does_with_the_rounded_weights(name: str) -> None:
    """With everything on no decision can change; the rounding of products to 11 bits remains."""
    limits, prompt = everything_on(FUSED[name]), tiny_ids(seed=3, batch=1, time=T)
    model = rounded_model(fused_model(name), "cuda", HALF)
    with torch.no_grad():
        expected = model(prompt, limits).logits.numpy()
    graph = graph_for_cuda(name, HALF)
    graph_out = Sequences(graph).run(prompt.numpy(), limits)
    error = np.sqrt(((graph_out.logits - expected) ** 2).mean(-1) / (expected**2).mean())  # (1, T)
    assert 1e-5 < np.median(error) < 3e-3
    layers = range(FUSED[name].num_layers)
    assert op_types(graph).count("GroupQueryAttention") == sum(is_grouped(FUSED[name], HALF, i) for i in layers)


@each("name", ["top_p", "top_k", "no_positions", "one_kv_head", "qk_norm_none", "qk_norm_full", "softcap"])
def test_every_layer_of_a_plain_fp16_model_is_grouped_query_attention(name: str) -> None:
    assert op_types(graph_for_cuda(name, HALF)).count("GroupQueryAttention") == FUSED[name].num_layers


@each("precisions", [FP32, HALF])
@each("name", FUSED)
def test_a_prompt_equals_its_tokens_its_parts_and_its_place_in_a_batch(name: str, precisions: Precisions) -> None:
    limits, graph = everything_on(FUSED[name]), graph_for_cuda(name, precisions)
    ids = tiny_ids(seed=2, batch=3, time=T).numpy()
    whole, parts = Sequences(graph).run(ids[:1], limits), Sequences(graph)
    others = [
        Sequences(graph).steps(ids[:1], limits),
        joined([parts.run(ids[:1, at], limits) for at in (slice(0, 9), slice(9, 10), slice(10, T))]),
        row(Sequences(graph, 3).steps(ids, limits, limits, limits), 0),
        Sequences(graph, capacity=T).run(ids[:1], limits),  # a pass as long as the cache
        Sequences(graph, fill=7.0).run(ids[:1], limits),
    ]
    for other in others:
        same_decisions(other, whole)
        np.testing.assert_array_equal(other.new_lengths, whole.new_lengths)
        np.testing.assert_allclose(other.logits, whole.logits, rtol=0, atol=1e-2 if precisions == HALF else 1e-4)


@pytest.mark.parametrize("name", ["top_p", "dense", "shared_tied"])
def test_a_model_without_skipped_layers_has_no_branch_and_reads_nothing_back(name: str) -> None:
    for precisions in (FP32, HALF):
        assert not {"If", "NonZero", "Loop"} & set(op_types(graph_for_cuda(name, precisions)))


def test_a_layer_that_can_be_skipped_is_one_branch_and_lists_no_tokens() -> None:
    config, types = FUSED["project"], op_types(graph_for_cuda("project"))
    skippable = sum(config.can_skip(i) for i in range(config.num_layers))
    assert types.count("If") == skippable + len(config.depth.exit_layers)
    assert not {"NonZero", "ScatterND"} & set(types)


def test_every_node_of_the_root_graph_is_read() -> None:
    for name in FUSED:
        proto = graph_for_cuda(name).proto
        read = {name for node in nodes(proto) for name in node.input} | {output.name for output in proto.graph.output}
        for branch in (a.g for node in nodes(proto) for a in node.attribute if a.HasField("g")):
            read |= {output.name for output in branch.output}
        assert [node.name for node in proto.graph.node if not read & set(node.output)] == []
