"""The manifest's costs, counted again: FLOPs from ONNX Runtime's profile, bytes from the initializers."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from support.cases import each, slowly_all
from support.cover import in_each
from support.graphs.bare_graph import COVER, MODELS, initializers, model_of, proto_of, weights_of
from support.runs import write_run

from adaptive_lm.contract.file_names import GRAPH, WEIGHTS
from adaptive_lm.export.costs import costs, packed_costs
from adaptive_lm.export.fused.transformer import build as build_fused
from adaptive_lm.export.model.attention import heads
from adaptive_lm.export.package import write_files
from adaptive_lm.export.proof.judge import points
from adaptive_lm.export.source import read
from adaptive_lm.runtime.dial.dial import Thresholds
from adaptive_lm.runtime.execution.batch import Batch
from adaptive_lm.runtime.execution.graph import Graph
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.execution.usage.cost import Meter
from adaptive_lm.runtime.format.manifest import KV, CostTable, LayerCosts, Manifest, Precision, Precisions
from adaptive_lm.train.model import ModelConfig, ThresholdTensors

PRODUCTS = ("Gemm", "MatMul", "MatMulInteger")
ELSEWHERE = re.compile(r"/combine|/scores|/mixed")
"""Products counted in another way: sums over experts or heads not at all, those over keys by the keys seen."""
OF_A_MIXER = re.compile(r"\.mixer\.(?!(?:q|k|v|r|gate|in|o|a_proj|b_proj|[wag][12])\.weight)")
"""Vectors of a recurrent mixer, and its convolution: small, or counted with its state."""


def thresholds_of(limits: ThresholdTensors) -> Thresholds:
    return Thresholds(**{name: values.numpy() for name, values in limits.given().items()})


def profiled_flops(folder: Path, manifest: Manifest, ids: list[int], limits: ThresholdTensors) -> list[float]:
    """FLOPs of the matrix products that ONNX Runtime ran for each token of `ids`, one at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_mem_pattern = 1, False
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
    graph = Graph(onnxruntime, session, manifest, Meter(manifest), "cpu", "fp32", mixes_sequences=False)
    sequence = Batch(graph, capacity=len(ids)).join(thresholds_of(limits))
    for token in ids:
        sequence.step(token)
    events = json.loads(Path(session.end_profiling()).read_bytes())
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    found = [0.0] * len(ids)
    for event in events:
        if (
            event.get("cat") == "Node"
            and event["args"].get("op_name") in PRODUCTS
            and not ELSEWHERE.search(event["name"])
        ):
            left = next(iter(event["args"]["input_type_shape"][0].values()))
            out = next(iter(event["args"]["output_type_shape"][0].values()))
            if "/position_" in event["name"]:
                out[2] = 1  # without the spare row of int8, which is no part of the model
            found[int(np.searchsorted(starts, event["ts"], side="right")) - 1] += 2.0 * left[-1] * np.prod(out)
    return found


KINDS: dict[str, dict[str, Any]] = {
    "everything": {"ffn": {"num_experts": 4, "expert_dim": 16, "experts_per_token": 1.6, "shared_expert_dim": 8}},
    "project": {"depth": {"layers_share": 0.5, "skipped_kv": "project", "exit_layers": [0, 1]}},
    "dense": {"ffn": {"routing": "dense", "dim": 40}, "head_dim": 12},
    "plain": {"depth": {}, "num_kv_heads": 1, "tie_embeddings": True},
    "masked": {"heads": {"routing": "top_p", "shared_heads": 1, "heads_per_token": 2.5, "per_token": True}},
    "sliced": {"heads": {"routing": "adaptive", "heads_per_token": 2}},
    "cope": {"attention": {"positions": ["cope", "rope", "cope"], "max_positions": 5, "window": [0, 0, 8]}},
    "attention": {
        "attention": {
            "qk_norm": "full",
            "qkv_bias": True,
            "o_bias": True,
            "softcap": 5.0,
            "rope": {"share": 0.5},
        }
    },
    "factors": {
        "ffn": {"num_experts": 4, "expert_dim": 16, "per_token": True},
        "depth": {"layers_share": 0.5, "per_token": True, "exit_layers": [0, 1], "exit_criterion": "router"},
        "attention": {"window": 6, "window_kind": "learned", "window_least": 2},
    },
}


def single_outputs(config: ModelConfig, layer: int) -> float:
    """FLOPs of the routers of a layer that are a sum of products: factors of thresholds, complexity, windows."""
    complexity, learned = config.heads.routing == "adaptive", config.attention.window_kind == "learned"
    number = config.ffn.per_token + (config.heads.per_token or complexity)
    return 2.0 * config.dim * (number + (learned and config.window_of(layer) > 0))


@pytest.mark.parametrize(("kind", "precision"), slowly_all(KINDS, ["fp32", "int8"]))
def test_executed_flops_are_those_of_the_matrix_products_that_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, precision: Precision
) -> None:
    """A token also pays for attention over its keys and for routers with one output, which are not matrix products."""
    if kind == "sliced":
        monkeypatch.setattr(heads, "SLICED_FROM", {"fp32": 0, "int8": 0})
    source = read(write_run(tmp_path / "runs" / kind, **KINDS[kind]))
    folder = tmp_path / "model"
    folder.mkdir()
    manifest = write_files(source, folder, Precisions.of(precision))
    ids, at = source.heldout_ids(6)[0].tolist(), points(source)
    session = Session(folder, manifest, device="cpu", threads=1, verify=False)
    assert set(at) == {"trained", "everything", "little"}
    assert any(layer.head for layer in manifest.costs.flops.layers) is (kind == "sliced")
    for limits in at.values():
        sequence = session.sequence(thresholds_of(limits))
        for found, token in zip(profiled_flops(folder, manifest, ids, limits), ids, strict=True):
            step = sequence.step(token)
            elsewhere = 0.0
            for i, layer in enumerate(manifest.costs.flops.layers):
                if step.routes.layers_run[i, 0]:
                    elsewhere += layer.attention_per_key * step.routes.keys[i, 0]
                    elsewhere += single_outputs(source.config, i)
                if manifest.model.layers[i].depth_router and step.routes.exit_layer[0] not in range(i):
                    elsewhere += layer.depth_router
                if source.config.depth.exit_criterion == "router" and i in source.config.depth.exit_layers:
                    asked = step.routes.exits_open[i] and step.routes.exit_layer[0] not in range(i)
                    elsewhere += layer.exit_check * asked
            assert step.usage.executed_flops == pytest.approx(found + elsewhere, rel=1e-12)


def experts_of(config: ModelConfig, layer: int) -> int:
    return 1 if config.is_dense(layer) else config.num_experts


@each(("name", "precision"), in_each(MODELS, COVER, ["fp32", "int8"]))
def test_weight_bytes_are_those_of_the_matrices_in_the_file(name: str, precision: Precision) -> None:
    config = MODELS[name]
    table = costs(config, Precisions.of(precision)).weight_bytes
    every = sum(
        layer.depth_router
        if i in config.recursion.repeated  # the rest is that of the layer that it repeats
        else layer.attention
        + layer.router
        + layer.expert * experts_of(config, i)
        + layer.shared_expert
        + layer.depth_router
        for i, layer in enumerate(table.layers)
    )
    weights = [tensor for tensor in initializers(proto_of(name, precision)) if ":" not in tensor.name]
    sizes = {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in weights}
    left_out = (
        "norm.weight",
        "learned_positions",
        "rotary.",
        "bias",
        "window_reach",
        "window_by_length",
        "exit_routers",
    ) + (() if config.tie_embeddings else ("embedding.weight",))
    in_file = sum(
        size
        for weight, size in sizes.items()
        if not any(word in weight for word in left_out) and not OF_A_MIXER.search(weight)
    )
    assert table.lm_head + every == in_file


def test_each_part_of_a_layer_costs_what_its_matrices_say() -> None:
    """By hand: width 32, 4 heads and 2 key/value heads of 8, 4 experts of 12, vocabulary 29; a multiply-add is 2."""
    config = MODELS["both_project"]
    flops, read = costs(config, Precisions.of("fp32")).flops, costs(config, Precisions.of("fp32")).weight_bytes
    matrices = {
        "attention": 32 * 32 + 32 * 32 + 32 * 32,  # q, keys and values, o
        "router": 32 * 4,
        "expert": 32 * 24 + 12 * 32,
        "shared_expert": 0,
        "depth_router": 32,
        "exit_check": 32 * 29,
        "skipped_kv": 32 * 32,
    }
    expected = LayerCosts(attention_per_key=2 * 2 * 32, **{name: 2.0 * n for name, n in matrices.items()})
    assert flops.layers[1] == expected
    assert read.layers[1] == LayerCosts(attention_per_key=2 * 16 * 4, **{name: 4.0 * n for name, n in matrices.items()})
    assert (flops.lm_head, read.lm_head) == (2 * 32 * 29, 4 * 32 * 29)
    assert flops.layers[0] == expected.model_copy(update={"depth_router": 0.0})
    assert flops.layers[3] == expected.model_copy(update={"depth_router": 0.0, "exit_check": 0.0})


def test_int8_reads_a_byte_a_weight_and_a_scale_an_output_but_routers_and_cache_are_fp32() -> None:
    config = MODELS["shared_expert"]
    fp32, int8 = costs(config, Precisions.of("fp32")), costs(config, Precisions.of("int8"))
    assert int8.flops == fp32.flops
    one, other = int8.weight_bytes.layers[1], fp32.weight_bytes.layers[1]
    assert one.attention == other.attention / 4 + 4 * (32 + 32 + 32)
    assert one.expert == other.expert / 4 + 4 * (24 + 32)
    assert one.shared_expert == other.shared_expert / 4 + 4 * (40 + 32)
    assert (one.router, one.attention_per_key) == (other.router, other.attention_per_key)


@each("name", MODELS)
def test_there_is_a_cost_for_every_layer_and_none_is_negative(name: str) -> None:
    tables: Counter[str] = Counter()
    for precision in ("fp32", "int8"):
        both = costs(MODELS[name], Precisions.of(precision))
        for table in (both.flops, both.weight_bytes):
            assert isinstance(table, CostTable)
            assert len(table.layers) == MODELS[name].num_layers
            assert min(min(layer.model_dump().values()) for layer in table.layers) >= 0
            tables[precision] += 1
    assert tables == {"fp32": 2, "int8": 2}


def test_the_weights_of_int8_take_a_quarter_of_the_file(tmp_path: Path) -> None:
    """The matrices of this model dominate its file, as in any useful model."""
    ffn = {"num_experts": 4, "expert_dim": 256, "experts_per_token": 1.6}
    source = read(write_run(tmp_path / "runs" / "wide", dim=128, num_layers=2, depth={}, ffn=ffn))
    sizes = {}
    for precision in ("fp32", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        manifest = write_files(source, folder, Precisions.of(precision))  # type: ignore[arg-type]
        sizes[precision] = manifest.files[WEIGHTS].bytes
        read_bytes = manifest.costs.weight_bytes
        matrices = read_bytes.lm_head + sum(x.attention + x.router + 4 * x.expert for x in read_bytes.layers)
        assert matrices == pytest.approx(sizes[precision], rel=0.06)
    assert 0.25 <= sizes["int8"] / sizes["fp32"] < 0.27


def test_the_checker_reads_the_graph_with_its_weights_outside(tmp_path: Path) -> None:
    source = read(write_run(tmp_path / "runs" / "tiny"))
    write_files(source, tmp_path, Precisions.of("fp32"))
    onnx.checker.check_model(tmp_path / GRAPH, full_check=True)


@each(("name", "precision"), in_each(MODELS, COVER, ["fp32", "bf16", "int8", "int4"]))
def test_packed_bytes_are_those_of_the_matrices_in_the_file_with_their_padding(name: str, precision: Precision) -> None:
    config = MODELS[name]
    precisions = Precisions.of(precision)
    table = packed_costs(config, precisions, "fp32").weight_bytes
    proto = build_fused(config, weights_of(model_of(name)), precisions)
    packed = {t.name: numpy_helper.to_array(t) for t in initializers(proto) if t.name.endswith(".packed")}
    sizes = {name: len(data) for name, data in packed.items() if data.ndim == 1}  # CoPE's embedding is no matrix
    head = "embedding.weight.packed" if config.tie_embeddings else "head.weight.packed"
    assert table.lm_head == sizes[head]
    for i, layer in enumerate(table.layers):
        name = f"layers.{config.recursion.source_of(i)}"
        own = {part: size for part, size in sizes.items() if part.startswith(f"{name}.")}
        attention = sum(size for part, size in own.items() if ".attention." in part or ".mixer." in part)
        not_packed = 4 * config.resolved_head_dim * config.attention.max_positions * (config.positions_of(i) == "cope")
        if config.mixer_of(i) == "gated_delta":
            not_packed = 4 * 2 * config.dim * config.num_heads  # the rows of its two gates
        assert layer.attention + layer.head * config.num_heads == attention + not_packed
        shared = sum(size for part, size in own.items() if ".shared." in part)
        assert layer.shared_expert == shared
        assert layer.expert * experts_of(config, i) == sum(own.values()) - attention - shared
        assert layer.skipped_kv in (0, own.get(f"{name}.attention.kv.weight.packed"))
        assert bool(layer.skipped_kv) is (config.depth.skipped_kv == "project" and config.attends(i))


@pytest.mark.parametrize(("kv", "key"), [("fp32", 4 * 2 * 8), ("fp16", 2 * 2 * 8), ("int8", 2 * (8 + 4))])
def test_a_key_and_a_value_cost_what_the_cache_holds_of_them(kv: KV, key: int) -> None:
    """Two heads of 8: int8 adds a float32 scale to each."""
    table = packed_costs(MODELS["both_project"], Precisions.of("int8"), kv).weight_bytes
    assert [layer.attention_per_key for layer in table.layers] == [2 * key] * 4
    counted = packed_costs(MODELS["cope_project"], Precisions.of("int8"), kv).weight_bytes
    assert [layer.attention_per_key for layer in counted.layers] == [2 * key, 2 * key + 4, 2 * key + 4, 2 * key + 4]


def test_heads_that_were_not_chosen_cost_our_operators_nothing() -> None:
    """In the portable graph all heads of this size are one product, and all attend."""
    config = MODELS["heads_top_p"]
    portable = costs(config, Precisions.of("fp32")).flops
    own = packed_costs(config, Precisions.of("fp32"), "fp32").flops
    for one, other in zip(portable.layers, own.layers, strict=True):
        assert (one.head, one.head_per_key) == (0, 0)
        assert (other.head, other.head_per_key, other.attention_per_key) == (2 * 2 * 32 * 8, 4 * 8, 0)
        assert other.attention + 4 * other.head == one.attention
        assert 4 * other.head_per_key == one.attention_per_key
    dense = packed_costs(MODELS["top_p"], Precisions.of("fp32"), "fp32").flops
    assert dense == costs(MODELS["top_p"], Precisions.of("fp32")).flops


def test_bf16_and_int4_of_the_portable_graph_read_what_they_are_held_as() -> None:
    config = MODELS["shared_expert"]
    assert costs(config, Precisions.of("bf16")) == costs(config, Precisions.of("fp32"))
    assert costs(config, Precisions.of("int4")) == costs(config, Precisions.of("int8"))
