"""Layers with recurrent mixers in the portable graph: what they compute, remember, skip and cost."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import model as reference
from support.cases import each, each_covered
from support.cover import covering
from support.graphs.bare_graph import Graph, Sequences, everything_on, joined, nodes, row, same_decisions, together
from support.mixer_models import KINDS, MIXER_MODELS, B, T, judged, mixer_ids, mixer_limits, mixer_model
from support.models import as_arrays, decisions, judge
from support.runs import write_run

from adaptive_lm.contract.errors import UserError
from adaptive_lm.export.costs import costs
from adaptive_lm.export.cuda.transformer import build as build_cuda
from adaptive_lm.export.graph.weights import is_matrix, part_of
from adaptive_lm.export.model.transformer import build
from adaptive_lm.export.outgoing.formats import export_to
from adaptive_lm.export.package import write_files
from adaptive_lm.export.proof.judge import rounded_model
from adaptive_lm.export.proof.parity import TOLERANCE
from adaptive_lm.export.source import read, weights_of
from adaptive_lm.runtime.format.manifest import Manifest, Precision, Precisions

FP32 = TOLERANCE["fp32"]
LOGITS = 3 * FP32
"""Of a standard deviation of 3: parity measures logits by their spread."""
FEW = covering(MIXER_MODELS)
"""Models that together have every mixer and every mechanism beside one."""
SKIP = [name for name, config in MIXER_MODELS.items() if config.adapts_depth]


@cache
def graph_of(name: str, precision: Precision = "fp32", target: str = "portable") -> Graph:
    write = build if target == "portable" else build_cuda
    return Graph(write(MIXER_MODELS[name], weights_of(mixer_model(name)), Precisions.of(precision)), MIXER_MODELS[name])


@each("target", ["portable", "cuda"])
@each_covered("name", MIXER_MODELS, FEW)
def test_a_prompt_gives_what_torch_and_the_plain_model_give(name: str, target: str) -> None:
    limits, prompt = mixer_limits(name), mixer_ids()[:1]
    graph_out = Sequences(graph_of(name, target=target)).run(prompt, limits)
    plain = judged(name)
    same_decisions(graph_out, plain)
    np.testing.assert_allclose(graph_out.logits, plain.logits, rtol=0, atol=LOGITS)
    np.testing.assert_array_equal(graph_out.new_lengths, plain.cache_lengths)
    with torch.no_grad():
        out = mixer_model(name)(torch.from_numpy(prompt), limits)
    for decision, torch_says in decisions(out).items():
        np.testing.assert_array_equal(getattr(graph_out, decision), torch_says.numpy(), err_msg=decision)
    np.testing.assert_allclose(graph_out.logits, out.logits.numpy(), rtol=0, atol=LOGITS)


@each("name", SKIP)
def test_the_models_of_these_tests_skip_layers(name: str) -> None:
    runs = judged(name).layers_run
    assert 0.1 < runs.mean() < 0.95
    recurrent = [layer for layer in range(len(runs)) if not MIXER_MODELS[name].attends(layer)]
    assert any(runs[layer].any() and not runs[layer].all() for layer in recurrent)


@each("precision", ["fp32", "int8", "int4"])
@each_covered("name", MIXER_MODELS, FEW)
def test_a_prompt_equals_its_tokens_one_at_a_time_and_its_parts(name: str, precision: Precision) -> None:
    limits, prompt, graph = mixer_limits(name), mixer_ids()[:1], graph_of(name, precision)
    whole = Sequences(graph)
    expected = whole.run(prompt, limits)
    steps, parts = Sequences(graph), Sequences(graph)
    in_parts = joined([parts.run(prompt[:, at], limits) for at in (slice(0, 9), slice(9, 10), slice(10, T))])
    for sequence, other in ((steps, steps.steps(prompt, limits)), (parts, in_parts)):
        same_decisions(other, expected)
        np.testing.assert_array_equal(other.new_lengths, expected.new_lengths)
        tolerance = FP32 if precision == "fp32" else 0.0
        np.testing.assert_allclose(other.logits, expected.logits, rtol=0, atol=tolerance)
        for key, state in sequence.content().items():
            np.testing.assert_allclose(state, whole.content()[key], rtol=0, atol=tolerance, err_msg=key)


@each_covered("name", MIXER_MODELS, FEW)
def test_a_batch_decodes_each_sequence_as_the_plain_model_does_and_as_it_does_alone(name: str) -> None:
    """Each has its own thresholds, its own start, and so its own lengths, routes and states."""
    starts, limits, singles = (0, 5, 9), [mixer_limits(name, b) for b in range(B)], []
    for b in range(B):
        single = Sequences(graph_of(name))
        if starts[b]:
            single.run(mixer_ids()[b : b + 1, : starts[b]], limits[b])
        singles.append(single)
    steps, batch = T - max(starts), together(*singles)
    rest = np.stack([mixer_ids()[b, starts[b] : starts[b] + steps] for b in range(B)])
    graph_out = batch.steps(rest, *limits)
    content = batch.content()
    for b in range(B):
        here = slice(starts[b], starts[b] + steps)
        same_decisions(row(graph_out, b), judged(name, b), here)
        np.testing.assert_allclose(graph_out.logits[b], judged(name, b).logits[0, here], rtol=0, atol=LOGITS)
        singles[b].steps(rest[b : b + 1], limits[b])
        for key, alone in singles[b].content().items():
            if key.startswith(("state.", "conv.")):
                np.testing.assert_allclose(content[key][b], alone[0], rtol=0, atol=FP32, err_msg=key)


@each("name", MIXER_MODELS)
def test_states_are_those_of_the_plain_model_and_change_only_where_a_token_ran_the_layer(name: str) -> None:
    config, limits = MIXER_MODELS[name], mixer_limits(name)
    weights = {key: np.asarray(value, np.float64) for key, value in weights_of(mixer_model(name)).items()}
    plain = reference.Sequence(weights, config, as_arrays(limits), np.float64)
    result = reference.forward(weights, config, mixer_ids()[:1], as_arrays(limits))
    sequence, skipped = Sequences(graph_of(name)), 0
    for t in range(T):
        before = sequence.content()
        graph_out = sequence.run(mixer_ids()[:1, t : t + 1], limits)
        plain.step(int(mixer_ids()[0, t]), t, result, 0)
        for key, after in sequence.content().items():
            kind, layer = key.split(".")
            if kind not in ("state", "conv"):
                continue
            ran = bool(graph_out.layers_run[int(layer), 0, 0])
            assert (after != before[key]).any() == ran, f"{key} at token {t}"
            skipped += not ran
            mixer = plain.mixers[int(layer)]
            if kind == "state":
                spread = max(1.0, mixer.states.std())
                np.testing.assert_allclose(after[0], mixer.states, rtol=0, atol=FP32 * spread, err_msg=key)
            else:
                inputs = np.stack([np.zeros(after.shape[1])] * after.shape[2] + mixer.inputs)[-after.shape[2] :]
                np.testing.assert_allclose(after[0].T, inputs, rtol=0, atol=FP32, err_msg=key)
    assert skipped or name not in SKIP


@each("name", SKIP)
def test_a_layer_that_no_token_runs_leaves_its_states_to_the_last_bit(name: str) -> None:
    config = MIXER_MODELS[name]
    sequence = Sequences(graph_of(name))
    sequence.run(mixer_ids()[:1, :6], everything_on(config))
    before = sequence.content()
    skipped = everything_on(config)._replace(depth_threshold=torch.ones(config.num_layers))
    graph_out = sequence.run(mixer_ids()[:1, 6:12], skipped)
    for layer in range(config.num_layers):
        if config.attends(layer) or graph_out.layers_run[layer].any():
            continue
        for kind in config.state_shapes(layer):
            key = f"{kind}.{layer}"
            np.testing.assert_array_equal(sequence.content()[key], before[key], err_msg=key)
    skips = [
        layer for layer in range(config.num_layers) if config.has_depth_router(layer) and not config.attends(layer)
    ]
    assert all(not graph_out.layers_run[layer].any() for layer in skips)


@pytest.mark.parametrize("name", ["all_kinds", "odd_sizes"])
def test_bf16_says_what_torch_says_with_rounded_weights(name: str) -> None:
    model = rounded_model(mixer_model(name), "portable", Precisions.of("bf16"))
    plain = judge(model, torch.from_numpy(mixer_ids()[:1]), mixer_limits(name))
    assert not plain.near_ties().any(), "choose another seed: these decisions may fall either way"
    graph_out = Sequences(graph_of(name, "bf16")).run(mixer_ids()[:1], mixer_limits(name))
    same_decisions(graph_out, plain)
    np.testing.assert_allclose(graph_out.logits, plain.logits, rtol=0, atol=LOGITS)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_large_projections_are_quantised(kind: str) -> None:
    projections = {"mamba2": {"in", "o"}, "rwkv7": {"r", "k", "v", "o"}}.get(kind, {"q", "k", "v", "gate", "o"})
    state = {name: value for name, value in weights_of(mixer_model(kind)).items() if ".mixer." in name}
    matrices = {name for name, value in state.items() if is_matrix(name, value.ndim)}
    assert {name.split(".")[3] for name in matrices} == projections
    assert {part_of(name) for name in state} == {"attention"}
    stored = {tensor.name for graph in [graph_of(kind, "int8").proto.graph] for tensor in graph.initializer}
    assert {name for name in stored if ".mixer." in name and name.endswith(".int8")} == {f"{n}.int8" for n in matrices}


@each("target", ["portable", "cuda"])
@each("kind", KINDS)
def test_the_graph_has_standard_operators_and_no_cache(kind: str, target: str) -> None:
    proto = graph_of(kind, target=target).proto
    if target == "portable":
        assert {node.domain for node in nodes(proto)} == {""}
    names = {value.name for value in [*proto.graph.input, *proto.graph.output]}
    assert not {name for name in names if "key" in name or "value" in name}
    assert {name for name in names if "state" in name} == {
        f"{when}_state.{i}" for when in ("past", "present") for i in range(4)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_no_copy_of_a_state_is_left_in_the_optimised_graph(kind: str, tmp_path: Path) -> None:
    optimised = graph_of(kind).optimised(tmp_path / "optimised.onnx")
    assert not [node.name for node in optimised.graph.node if node.op_type == "Identity"]


@each("name", MIXER_MODELS)
def test_costs_are_those_of_the_matrices_and_states(name: str) -> None:
    config, model = MIXER_MODELS[name], mixer_model(name)
    both = costs(config, Precisions.of("fp32"))
    for layer in range(config.num_layers):
        if config.attends(layer):
            assert both.flops.layers[layer].state == both.weight_bytes.layers[layer].state == 0
            continue
        mixer = model.blocks()[layer].mixer
        assert mixer is not None
        matrices = sum(p.numel() for name, p in mixer.named_parameters() if p.ndim == 2 and "conv" not in name)
        flops, read = both.flops.layers[layer], both.weight_bytes.layers[layer]
        assert (flops.attention, read.attention) == (2.0 * matrices, 4.0 * matrices)
        assert flops.attention_per_key == read.attention_per_key == flops.skipped_kv == read.skipped_kv == 0
        shapes, kind = config.state_shapes(layer), config.mixer_of(layer)
        sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
        assert read.state == 2 * 4 * sum(sizes.values())
        # decay 1, v k^T 2 and S r 2, of the delta rules also S a 2 and (S a) b^T 2; the convolution has one tap more
        # than it remembers inputs, and that of RWKV-7 is none
        flops_of_state = (9 if kind in ("gated_delta", "rwkv7") else 5) * sizes["state"]
        convolves = "conv" in shapes and kind != "rwkv7"
        assert flops.state == flops_of_state + (2 * (sizes["conv"] + shapes["conv"][0]) if convolves else 0)


def test_int8_makes_the_projections_smaller_and_leaves_the_state() -> None:
    whole, small = (costs(MIXER_MODELS["all_kinds"], Precisions.of(p)).weight_bytes.layers for p in ("fp32", "int8"))
    for one, other in zip(whole, small, strict=True):
        assert other.attention < 0.6 * one.attention
        assert other.state == one.state


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run of three layers: Mamba-2, RWKV-7 that tokens may skip, and attention."""
    folder = tmp_path_factory.mktemp("mixers") / "runs" / "tiny"
    return write_run(folder, mixers=["mamba2", "rwkv7", "attention"])


def test_the_manifest_describes_the_mixers_and_is_one_that_older_programs_refuse(run: Path, tmp_path: Path) -> None:
    manifest = write_files(read(run), tmp_path)
    manifest.write(tmp_path)
    content = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    assert '"format_version": 3' in content, "a program that knows version 2 asks for its upgrade"
    mamba2, rwkv7, attention = Manifest.read(tmp_path).model.layers
    assert (mamba2.mixer, mamba2.states) == ("mamba2", {"state": [4, 8, 8], "conv": [32 + 16, 3]})
    assert (rwkv7.mixer, rwkv7.states) == ("rwkv7", {"state": [4, 8, 8], "conv": [32, 1]})
    assert (attention.mixer, attention.states, attention.attends) == ("attention", {}, True)
    assert (mamba2.positions, mamba2.window, mamba2.head_routing) == ("none", 0, "all")
    assert manifest.inputs["past_state.0"].shape == ["B", 4, 8, 8]
    assert manifest.inputs["past_conv.1"].shape == ["B", 32, 1]
    assert "past_key.0" not in manifest.inputs
    assert "past_key.2" in manifest.inputs


def test_a_model_of_attention_alone_is_written_in_the_version_that_older_programs_read(tmp_path: Path) -> None:
    source = read(write_run(tmp_path / "runs" / "tiny"))
    (tmp_path / "model").mkdir()
    write_files(source, tmp_path / "model").write(tmp_path / "model")
    assert '"format_version": 2' in (tmp_path / "model" / "manifest.json").read_text(encoding="utf-8")


def test_other_formats_refuse_the_mixers_by_name(run: Path, tmp_path: Path) -> None:
    plain = {"depth": {"layers_share": 1.0}, "ffn": {"routing": "dense", "dim": 32}}
    other = write_run(tmp_path / "runs" / "other", mixers=["retnet", "gated_delta", "attention"], **plain)
    with pytest.raises(UserError, match=r"recurrent mixers \(model.mixers: retnet, gated_delta\).* adaptive export"):
        export_to("gguf", str(other), tmp_path / "model.gguf")
    with pytest.raises(UserError, match=r"mixers with a recurrent state \(model.mixers\).*export it as ONNX"):
        export_to("hf", str(other), tmp_path / "hf")
    assert not (tmp_path / "model.gguf").exists()
    assert not (tmp_path / "hf").exists()
