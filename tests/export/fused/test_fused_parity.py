"""The graph of our operators, run: decisions and logits of torch and of the plain model, and the same bits always."""

from functools import cache
from typing import get_args

import numpy as np
import torch
from support.cases import each, each_covered
from support.cover import in_each
from support.graphs.bare_graph import (
    COVER,
    DECISIONS,
    MODELS,
    Graph,
    GraphOutputs,
    Sequences,
    everything_on,
    joined,
    model_of,
    row,
    same_decisions,
    together,
    weights_of,
)
from support.models import busy_thresholds, decisions, judge, tiny_ids
from support.operators.our_library import needs_library

from adaptive_lm.export.fused.transformer import build
from adaptive_lm.export.proof.judge import rounded_model
from adaptive_lm.export.proof.parity import TOLERANCE
from adaptive_lm.runtime.format.manifest import KV, Precision, Precisions

pytestmark = needs_library
T = 24
FP32 = TOLERANCE["fp32"]
FORMS: list[tuple[Precision, KV]] = [
    ("fp32", "fp32"), ("fp32", "fp16"), ("fp32", "int8"), ("bf16", "fp32"), ("int8", "fp32"), ("int4", "fp32"),
    ("int4", "int8"),
]  # fmt: skip


@cache
def fused(name: str, precision: Precision = "fp32", kv: KV = "fp32", threads: int = 1) -> Graph:
    proto = build(MODELS[name], weights_of(model_of(name)), Precisions.of(precision), kv)
    return Graph(proto, MODELS[name], threads)


def ids() -> np.ndarray:
    return tiny_ids(seed=2, batch=3, time=T).numpy()


def same_bits(one: GraphOutputs, other: GraphOutputs) -> None:
    for name in ("logits", "new_lengths", *DECISIONS):
        if getattr(one, name) is not None:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@each("name", MODELS)
def test_a_prompt_gives_what_torch_and_the_plain_model_give(name: str) -> None:
    limits, prompt = busy_thresholds(MODELS[name]), ids()[:1]
    plain = judge(model_of(name), torch.from_numpy(prompt), limits)
    assert not plain.near_ties().any(), "choose another seed: these decisions may fall either way"
    graph_out = Sequences(fused(name)).run(prompt, limits)
    same_decisions(graph_out, plain)
    # parity measures logits by their spread; that matters where RetNet norms heads whose output is nearly 0
    tolerance = FP32 * max(1.0, float(plain.logits.std())) if MODELS[name].has_states else FP32
    np.testing.assert_allclose(graph_out.logits, plain.logits, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(graph_out.new_lengths, plain.cache_lengths)
    with torch.no_grad():
        out = model_of(name)(torch.from_numpy(prompt), limits)
    for decision, torch_says in decisions(out).items():
        np.testing.assert_array_equal(getattr(graph_out, decision), torch_says.numpy(), err_msg=decision)


@each("name", COVER)
def test_bf16_gives_what_torch_gives_with_the_rounded_weights(name: str) -> None:
    model = rounded_model(model_of(name), "cpu", Precisions.of("bf16"))
    limits, prompt = busy_thresholds(MODELS[name]), tiny_ids(seed=6 if name == "relu_experts" else 4, batch=1, time=T)
    plain = judge(model, prompt, limits)
    assert not plain.near_ties().any(), "choose another seed: these decisions may fall either way"
    graph_out = Sequences(fused(name, "bf16")).run(prompt.numpy(), limits)
    same_decisions(graph_out, plain)
    np.testing.assert_allclose(graph_out.logits, plain.logits, rtol=0, atol=FP32)


@each("precision", ["int8", "int4"])
@each("name", ["top_p", "dense", "shared_tied_project", "cope", "heads_top_p", "window_fixed"])
def test_quantised_weights_say_nearly_what_torch_says_with_them(name: str, precision: Precision) -> None:
    """With everything on no decision can change; the rounding of activations remains, a few percent as elsewhere."""
    limits, prompt = everything_on(MODELS[name]), ids()[:1]
    graph_out = Sequences(fused(name, precision)).run(prompt, limits)
    with torch.no_grad():
        model = rounded_model(model_of(name), "cpu", Precisions.of(precision))
        expected = model(torch.from_numpy(prompt), limits).logits.numpy()
    error = np.sqrt(((graph_out.logits - expected) ** 2).mean(-1) / (expected**2).mean())  # (1, T)
    assert 1e-4 < np.median(error) < 0.05


@each_covered(("name", "form"), in_each(MODELS, COVER, FORMS), COVER)
def test_a_token_has_the_same_bits_alone_in_a_prompt_and_in_a_batch(name: str, form: tuple[Precision, KV]) -> None:
    limits, graph = busy_thresholds(MODELS[name]), fused(name, *form)
    alone = Sequences(graph).steps(ids()[:1], limits)
    parts = Sequences(graph)
    others = [
        Sequences(graph).run(ids()[:1], limits),
        joined([parts.run(ids()[:1, at], limits) for at in (slice(0, 9), slice(9, 10), slice(10, T))]),
        row(Sequences(graph, 3).steps(ids(), limits, limits, limits), 0),
    ]
    for other in others:
        same_bits(other, alone)


@each("kv", get_args(KV))
@each("name", ["top_p", "cope_window_project", "length_none", "everything_none"])
def test_sequences_that_began_apart_go_on_together(name: str, kv: KV) -> None:
    """The contents of a cache can be joined along the sequences."""
    limits, graph = busy_thresholds(MODELS[name]), fused(name, "fp32", kv)
    singles, expected = [], []
    for b, start in enumerate((2, 5, 9)):
        single, alone = Sequences(graph), Sequences(graph)
        for sequence in (single, alone):
            sequence.run(ids()[b : b + 1, :start], limits)
        singles.append(single)
        expected.append(alone.steps(ids()[b : b + 1, start : start + 6], limits))
    rest = np.stack([ids()[b, start : start + 6] for b, start in enumerate((2, 5, 9))])
    batch = together(*singles).steps(rest, limits, limits, limits)
    for b in range(3):
        same_bits(row(batch, b), expected[b])


@each("kv", get_args(KV))
@each("name", ["both_project", "window_learned", "cope_none"])
def test_room_that_is_not_used_changes_nothing(name: str, kv: KV) -> None:
    limits, graph = busy_thresholds(MODELS[name]), fused(name, "fp32", kv)
    tight = Sequences(graph, capacity=T).run(ids()[:1], limits)
    roomy = Sequences(graph, capacity=32, fill=7).run(ids()[:1], limits)
    same_bits(roomy, tight)


@each("precision", ["fp32", "int8", "int4"])
@each("name", ["top_p", "everything_project", "everything_none"])
def test_two_threads_give_the_bits_of_one(name: str, precision: Precision) -> None:
    limits = busy_thresholds(MODELS[name])
    one = Sequences(fused(name, precision)).run(ids()[:1], limits)
    for _ in range(3):
        same_bits(Sequences(fused(name, precision, threads=2)).run(ids()[:1], limits), one)
