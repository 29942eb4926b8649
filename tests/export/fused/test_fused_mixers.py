"""Recurrent mixers in the graph of our operators: decisions and logits of torch, and the same bits always."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.cases import each
from support.graphs.bare_graph import Graph, GraphOutputs, Sequences, row, same_decisions, together
from support.mixer_models import KINDS, MIXER_MODELS, B, T, judged, mixer_ids, mixer_limits, mixer_model
from support.models import decisions
from support.operators.our_library import needs_library
from support.runs import write_run
from support.slots import Part, Slots

from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.fused.transformer import build
from adaptive_lm.export.proof.judge import rounded_model
from adaptive_lm.export.proof.parity import TOLERANCE
from adaptive_lm.export.source import weights_of
from adaptive_lm.runtime.format.manifest import Manifest, Precision, Precisions
from adaptive_lm.runtime.ops.probe import DOMAIN

pytestmark = needs_library
PRECISIONS: list[Precision] = ["fp32", "bf16", "int8", "int4"]
OPERATOR = {"retnet": "RetNet", "mamba2": "Mamba2", "gated_delta": "GatedDelta", "rwkv7": "Rwkv7"}
each_model = each("name", MIXER_MODELS)


@cache
def fused(name: str, precision: Precision = "fp32", threads: int = 1) -> Graph:
    proto = build(MIXER_MODELS[name], weights_of(mixer_model(name)), Precisions.of(precision))
    return Graph(proto, MIXER_MODELS[name], threads)


def same_bits(one: GraphOutputs, other: GraphOutputs) -> None:
    for name, value in vars(one).items():
        if value is not None:
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


@each_model
def test_a_prompt_gives_what_torch_and_the_plain_model_give(name: str) -> None:
    plain, prompt = judged(name), mixer_ids()[:1]
    graph_out = Sequences(fused(name)).run(prompt, mixer_limits(name))
    same_decisions(graph_out, plain)
    tolerance = TOLERANCE["fp32"] * max(1.0, float(plain.logits.std()))  # parity measures logits by their spread
    np.testing.assert_allclose(graph_out.logits, plain.logits, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(graph_out.new_lengths, plain.cache_lengths)
    with torch.no_grad():
        out = mixer_model(name)(torch.from_numpy(prompt), mixer_limits(name))
    for decision, torch_says in decisions(out).items():
        np.testing.assert_array_equal(getattr(graph_out, decision), torch_says.numpy(), err_msg=decision)


@each("precision", PRECISIONS)
@each_model
def test_a_token_has_the_same_bits_alone_in_a_prompt_in_parts_and_in_a_batch(name: str, precision: Precision) -> None:
    graph, limits = fused(name, precision), [mixer_limits(name, b) for b in range(B)]
    batch = Sequences(graph, B)
    in_batch = batch.steps(mixer_ids(), *limits)
    for b in range(B):
        alone = [Sequences(graph) for _ in range(3)]
        prompt = alone[0].run(mixer_ids()[b : b + 1], limits[b])
        same_bits(alone[1].steps(mixer_ids()[b : b + 1], limits[b]), prompt)
        same_bits(alone[2].parts(mixer_ids()[b : b + 1], 7, limits[b]), prompt)
        same_bits(row(in_batch, b), prompt)
        for cache_name, content in alone[0].content().items():
            if cache_name.startswith(("state", "conv")):
                for other in (alone[1].content(), alone[2].content()):
                    np.testing.assert_array_equal(other[cache_name], content)
                np.testing.assert_array_equal(batch.content()[cache_name][b : b + 1], content)


@each_model
def test_sequences_that_began_apart_go_on_together(name: str) -> None:
    graph, limits = fused(name), [mixer_limits(name, b) for b in range(B)]
    apart = [Sequences(graph) for _ in range(B)]
    for b, length in enumerate((5, 1, 11)):
        apart[b].run(mixer_ids()[b : b + 1, :length], limits[b])
    joined = together(*apart).steps(mixer_ids()[:, 12:], *limits)
    for b in range(B):
        same_bits(row(joined, b), apart[b].run(mixer_ids()[b : b + 1, 12:], limits[b]))


@each_model
def test_parts_of_several_slots_in_one_pass_have_the_bits_that_they_have_alone(name: str) -> None:
    slots, order = Slots(fused(name), 5), [0, 1, 1, 0, 2, 1, 0, 0, 2, 1]
    parts = [
        Part(slot, mixer_ids()[b, : order.count(b)], mixer_limits(name, b)) for b, slot in enumerate((3, 0, 4))
    ]  # slots 1 and 2 are not in the pass
    before = slots.content(1)
    for graph_out, part, b in zip(slots.run(parts, order), parts, range(B), strict=True):
        alone = Sequences(fused(name))
        same_bits(graph_out, alone.run(part.ids[None], mixer_limits(name, b)))
    assert slots.content(1) == before


@each("precision", ["fp32", "int8"])
@each_model
def test_two_threads_give_the_bits_of_one(name: str, precision: Precision) -> None:
    one, two = (Sequences(fused(name, precision, threads)) for threads in (1, 2))
    for part in (slice(0, T - 1), slice(T - 1, T)):
        same_bits(*(each.run(mixer_ids()[:1, part], mixer_limits(name)) for each in (one, two)))


@each_model
def test_bf16_gives_what_torch_gives_with_the_rounded_weights(name: str) -> None:
    model = rounded_model(mixer_model(name), "cpu", Precisions.of("bf16"))
    with torch.no_grad():
        out = model(torch.from_numpy(mixer_ids()[:1]), mixer_limits(name))
    graph_out = Sequences(fused(name, "bf16")).run(mixer_ids()[:1], mixer_limits(name))
    for decision, torch_says in decisions(out).items():
        np.testing.assert_array_equal(getattr(graph_out, decision), torch_says.numpy(), err_msg=decision)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixer_is_one_node_per_layer_and_has_no_cache(kind: str) -> None:
    proto = fused(f"{kind}_none").proto
    of_ours = [node.op_type for node in proto.graph.node if node.domain == DOMAIN]
    assert of_ours.count(OPERATOR[kind]) == MIXER_MODELS[f"{kind}_none"].num_layers
    assert "Attention" not in of_ours
    assert not [entry.name for entry in proto.graph.input if entry.name.startswith(("past_key", "past_value"))]
    onnx.checker.check_model(proto)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_an_export_of_all_mixers_passes_its_check_and_reports_its_operators(
    precision: Precision, tmp_path: Path
) -> None:
    source = write_run(
        tmp_path / "runs" / "tiny", mixers=["retnet", "gated_delta", "attention", "rwkv7", "mamba2"], num_layers=5
    )
    exported = run_export(str(source), tmp_path / "model", Precisions.of(precision), threads=2)
    report = exported.report["targets"]["cpu"]
    assert report["checked"]
    assert report["skipping"]["passed"]
    target = Manifest.read(exported.folder).targets["cpu"]
    assert {target.mechanisms[kind] for kind in KINDS} == {"our operators"}
