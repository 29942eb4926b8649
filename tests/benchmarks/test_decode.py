"""The decode benchmark: its models keep the choices that they claim, and peers get the same weights."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("experts", [1, 2, 4, 8])
def test_every_token_uses_exactly_the_number_of_experts_and_layers_that_is_asked_for(experts: int) -> None:
    models = import_module("models.random_weights")
    size = models.Size(dim=64, layers=6, heads=4, kv_heads=2, hidden=32, experts=8, depth_routers=True)
    tensors = models.for_torch(models.thresholds_of(size, experts, skipped=3))
    with torch.no_grad():
        out = models.build(size)(torch.randint(models.VOCABULARY, (1, 50)), tensors)
    runs = torch.stack([layer.runs for layer in out.routing])
    assert (runs.sum(0) == 3).all()
    assert runs[0].all()
    assert runs[-1].all()
    chosen = torch.stack([layer.routes.selected_experts for layer in out.routing if layer.runs.all()])
    assert (chosen.sum(-1) == experts).all()
    if experts < 8:
        assert len({tuple(row) for row in chosen[0].tolist()}) > 1, "all tokens have the same experts"


@pytest.mark.parametrize(("model", "weights", "read"), [("dense-57m", 57.3, 57.3), ("moe-57m", 139.8, 47.9)])
def test_the_weights_of_a_size_are_those_of_its_model(model: str, weights: float, read: float) -> None:
    models = import_module("models.random_weights")
    size = models.SIZES[model]
    small = size._replace(layers=1)
    built = sum(parameter.numel() for parameter in models.build(small).parameters() if parameter.ndim > 1)
    assert built == small.weights()
    assert size.weights() / 1e6 == pytest.approx(weights, abs=0.05)
    assert size.weights(min(size.experts, 2)) / 1e6 == pytest.approx(read, abs=0.05)


@pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
@pytest.mark.parametrize("experts", [1, 4])
def test_a_gguf_file_holds_the_weights_of_the_model(tmp_path: Path, experts: int) -> None:
    import gguf

    from adaptive_lm.export.outgoing.gguf_family import family_of
    from adaptive_lm.export.outgoing.gguf_tensors import tensors_of

    models, files = import_module("models.random_weights"), import_module("models.gguf_file")
    size = models.Size(dim=64, layers=2, heads=4, kv_heads=2, hidden=32, experts=experts)
    model = models.build(size)
    files.write_gguf(tmp_path / "model.gguf", model)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    config = files.as_top_k(model.config)
    tensors = tensors_of(config, model.state_dict(), family_of(config))
    expected = {tensor.name: tensor.read().numpy() for tensor in tensors}
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value)
    matrices = sum(tensor.n_elements for tensor in reader.tensors if len(tensor.shape) > 1)
    assert matrices == size.weights()
    read = files.bytes_per_token(tmp_path / "model.gguf", 1)
    vectors = sum(int(tensor.n_bytes) for tensor in reader.tensors if len(tensor.shape) == 1)
    row = 0 if size.tied else 4 * size.dim
    assert read == 4 * size.weights(1) + vectors + row


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
@pytest.mark.parametrize(("experts", "used"), [(1, 1), (4, 4), (4, 2)])
def test_llama_cpp_computes_the_logits_of_torch(tmp_path: Path, experts: int, used: int) -> None:
    models, files, peers = (
        import_module("models.random_weights"),
        import_module("models.gguf_file"),
        import_module("decoding.participants"),
    )
    size = models.Size(dim=64, layers=2, heads=4, kv_heads=2, hidden=32, experts=experts)
    model = models.build(size)
    files.write_gguf(tmp_path / "model.gguf", model)
    ids = [5, 31_999, 7, 12_345, 0, 99]
    tensors = models.for_torch(models.thresholds_of(size, used))
    with torch.no_grad():
        expected = model(torch.tensor([ids]), tensors).logits[0, -1].numpy()
    peer = peers.LlamaCpp(tmp_path / "model.gguf", size, used, 1, 64)
    try:
        peer.begin(ids[:-1])
        peer.step(ids[-1])
        difference = (peer.logits() - expected).std() / expected.std()
    finally:
        peer.close()
    assert difference < 1e-3  # its keys and values are float16


def cell(threads: int) -> dict[str, object]:
    rows = {
        "cpu": {"cpu": [0.002, 0.002, 0.003], "wall": [0.02] * 3, "bytes": 40e6, "rates": [40e9] * 3},
        "portable": {"cpu": [0.004] * 3, "wall": [0.03] * 3, "bytes": 40e6, "rates": [40e9] * 3},
        "llama.cpp": {"cpu": [0.004, 0.004, 0.006], "wall": [0.01] * 3, "bytes": 40e6, "rates": [40e9] * 3},
    }
    experts = {f"cpu/{count}": rows["cpu"] | {"bytes": 1e6 * count} for count in (8, 4, 2, 1)}
    layers = {"cpu/0": rows["portable"], "cpu/4": rows["cpu"]}
    return {
        "spec": {"model": "moe-57m", "precision": "int8", "threads": threads, "rounds": 6},
        "decode": {"64": rows},
        "prefill": {"64": rows},
        "experts": experts,
        "layers": layers,
        "batch": {"4": {"llama.cpp": rows["llama.cpp"]}},
        "alone": {"cpu": {"load_seconds": 0.1, "first_token_seconds": 0.2, "memory_bytes": 2**20, "nodes": 47}},
    }


def report() -> dict[str, object]:
    machine = {"date": "2026-11-27", "cores": 2, "cpu": "a processor", "versions": {"torch": "2"}}
    return {"machine": machine, "cells": [cell(1), cell(2)]}


def test_the_tables_take_cpu_time_with_one_thread_and_wall_clock_with_more() -> None:
    text = import_module("decoding.report").markdown(report())
    one, two = text.split("### 1 thread")[1].split("### 2 threads")
    assert (
        "| moe-57m | int8 | 64 | 2.00 (50%) | 4.00 (25%) | 4.00 (25%) | 0.50 (0.50 to 0.50) | 1.00 (0.70 to 1.00) |"
        in one
    )
    assert "| moe-57m | int8 | 64 | 20.00 (5%) | 30.00 (3%) | 10.00 (10%) | 2.00 (2.00 to 2.00) |" in two
    assert "| moe-57m | int8 | ours, `cpu` | 1.00 (1.00) | 1.00 (0.50) | 1.00 (0.25) | 1.00 (0.12) |" in one
    assert "| moe-57m | int8 | ours, `cpu` | 4 | 0.50 (0.50 to 0.72) | 1.00 |" in one
    assert "| moe-57m | int8 | llama.cpp | 250 | 1000 |" in one
    assert "| moe-57m | int8 | ours, `cpu` | 0.10 | 0.20 | 1 | 47 |" in text


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    import_module("decoding.report").draw(report(), tmp_path / "figures" / "decode.png")
    assert (tmp_path / "figures" / "decode.png").read_bytes().startswith(b"\x89PNG")
