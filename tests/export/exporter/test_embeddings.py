"""Embeddings: the graphs of an export that was asked for hidden states, and the engine on them, compared with torch."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from support.operators.our_library import needs_library
from support.runs import write_run
from support.serving.served import served

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.file_names import MANIFEST
from adaptive_lm.export import package
from adaptive_lm.export.cuda.transformer import build as build_cuda
from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.fused.transformer import build as build_fused
from adaptive_lm.export.graph.weights import FP32
from adaptive_lm.export.model.transformer import build as build_portable
from adaptive_lm.export.package import write_files
from adaptive_lm.export.proof import quantisation
from adaptive_lm.export.source import Source, read
from adaptive_lm.runtime import Dial, Engine, Params, load
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.format.manifest import Manifest, Precision, Precisions
from adaptive_lm.serve.cli import group
from adaptive_lm.train.model import ThresholdTensors

KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "project": {"depth": {"layers_share": 0.5, "skipped_kv": "project", "exit_layers": [0, 1]}, "norm": "layer"},
    "window": {"attention": {"window": 8}, "norm_place": "sandwich"},
}
TEXTS = ["the sun rises over the river.", "a", "stone " * 35, "the moon sleeps", "night falls under a stone. " * 9]
DIALS = [None, Dial(router_top_p=1.0, depth_threshold=0, exit_threshold=1), Dial(exit_threshold=0.3)]


def write(folder: Path, kind: str, precision: Precision) -> Path:
    source = read(write_run(folder / "runs" / "tiny", **KINDS[kind]))
    model = folder / "runs" / "tiny" / "model"
    model.mkdir()
    cuda = ["cuda"] if precision == "fp32" else []
    manifest = write_files(source, model, Precisions.of(precision), ["cpu", *cuda], hidden=True)
    (model / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return model


@pytest.fixture(scope="module", params=KINDS)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    return {one: write(tmp_path_factory.mktemp(request.param), request.param, one) for one in precisions}


@pytest.fixture
def model(models: dict[Precision, Path]) -> Path:
    return models["fp32"]


@torch.no_grad()
def torch_embedding(source: Source, engine: Engine, text: str, dial: Dial | None) -> np.ndarray[Any, Any]:
    thresholds = resolve(engine.manifest, dial or Dial())
    levels = {name: torch.from_numpy(getattr(thresholds, name)) for name in ThresholdTensors._fields}
    out = source.model(torch.tensor([engine.tokenizer.encode_prompt(text)]), ThresholdTensors(**levels))
    return np.asarray(out.hidden[0].double().mean(0).float().numpy())


@needs_library
@pytest.mark.parametrize("target", ["portable", "cpu", "cuda"])
@pytest.mark.parametrize("dial", DIALS, ids=["trained", "everything", "early exits"])
def test_an_embedding_is_the_mean_of_the_hidden_states_of_torch(model: Path, target: str, dial: Dial | None) -> None:
    engine, source = load(model, device="cpu", target=target, threads=1), read(model.parent)
    vectors = engine.embed(TEXTS, dial)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert vector.dtype == np.float32
        np.testing.assert_allclose(vector, torch_embedding(source, engine, text, dial), atol=2e-5, rtol=0)


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("target", ["portable", "cpu"])
def test_an_embedding_has_the_same_bits_whatever_is_computed_beside_it(
    models: dict[Precision, Path], precision: Precision, target: str
) -> None:
    engine = load(models[precision], device="cpu", target=target, threads=1)
    alone = [engine.embed([text])[0] for text in TEXTS]
    for slots in (1, 3, 8):
        for vector, other in zip(engine.embed(TEXTS, slots=slots), alone, strict=True):
            np.testing.assert_array_equal(vector, other)
    # beside texts that decode, and after a text that begins with the same tokens, which is still in memory
    loop = engine.begin([engine.request(text, Params(max_new_tokens=8, temperature=0)) for text in TEXTS[:4]], slots=8)
    for _ in range(3):
        loop.step()
    beside = [engine.request(text, embeds=True) for text in TEXTS]
    for one in beside:
        loop.submit(one)
    while loop.busy:
        loop.step()
    for own, other in zip(beside, alone, strict=True):
        assert own.finish_reason == "embedded"
        assert own.cached_tokens == 0
        np.testing.assert_array_equal(own.embedding, other)


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_server_gives_the_vectors_of_the_engine_beside_texts_that_decode(
    models: dict[Precision, Path], precision: Precision
) -> None:
    alone = [load(models[precision], device="cpu", threads=1).embed([text])[0] for text in TEXTS]
    writes = {"prompt": "the moon", "max_tokens": 120, "seed": 3}
    with served(models[precision], target="cpu") as client, ThreadPoolExecutor() as pool:
        texts = [pool.submit(client.post, "/v1/completions", json=writes) for _ in range(3)]
        answers = [pool.submit(client.post, "/v1/embeddings", json={"input": TEXTS}) for _ in range(3)]
        assert len({one.result().json()["choices"][0]["text"] for one in texts}) == 1
        for answer in answers:
            vectors = [np.float32(one["embedding"]) for one in answer.result().json()["data"]]
            for vector, other in zip(vectors, alone, strict=True):
                np.testing.assert_array_equal(vector, other)


@needs_library
def test_a_text_that_follows_an_embedded_one_continues_its_cells(model: Path) -> None:
    engine = load(model, device="cpu", target="cpu", threads=1)
    expected = [token.id for token in engine.generate(TEXTS[0], Params(temperature=0, max_new_tokens=8))]
    engine.embed([TEXTS[0]])
    again = engine.generate(TEXTS[0], Params(temperature=0, max_new_tokens=8))
    assert [token.id for token in again] == expected
    assert again.request.cached_tokens


def test_a_graph_without_hidden_states_is_that_with_them_up_to_their_nodes(tmp_path: Path) -> None:
    source = read(write_run(tmp_path / "runs" / "tiny", **KINDS["project"]))
    config, state = source.config, source.weights()
    builds: list[Callable[..., onnx.ModelProto]] = [
        lambda **hidden: build_portable(config, state, **hidden),
        lambda **hidden: build_fused(config, state, FP32, **hidden),
        lambda **hidden: build_cuda(config, state, **hidden),
    ]
    for build in builds:
        without, with_hidden = build(), build(hidden=True)
        outputs = {one.name for one in with_hidden.graph.output} - {one.name for one in without.graph.output}
        assert outputs == {"hidden"}
        nodes = len(without.graph.node)
        assert list(with_hidden.graph.node)[:nodes] == list(without.graph.node)
        assert "LayerNormalization" in [one.op_type for one in with_hidden.graph.node][nodes:]


@needs_library
@pytest.mark.usefixtures("quick")
def test_the_export_reports_how_far_the_hidden_states_are_from_torch(here: Path) -> None:
    done = CliRunner().invoke(group, ["export", "tiny", "--onnx", "--embeddings", "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert "of hidden states" in done.stderr
    manifest = Manifest.read("runs/tiny/model")
    assert manifest.model.hidden_states
    assert manifest.outputs["hidden"].shape == ["B", "T", 32]
    for report in (manifest.parity, manifest.parity["targets"]["cpu"]):
        part = report["torch_thresholds_trained"]
        assert part["largest_hidden_difference"] <= part["tolerance"] < part["hidden_tolerance"]
    assert manifest.parity["targets"]["cpu"]["prompt_against_single_tokens"]["largest_hidden_difference"] == 0.0
    assert len(load("runs/tiny/model", device="cpu", threads=1).embed(["the sun"])) == 1


@pytest.mark.usefixtures("quick")
def test_without_the_option_nothing_is_said_of_hidden_states(here: Path) -> None:
    done = CliRunner().invoke(group, ["export", "tiny", "--onnx", "--target", "portable", "--threads", "1"])
    assert done.exit_code == 0, done.output
    manifest = Manifest.read("runs/tiny/model")
    assert not manifest.model.hidden_states
    assert "hidden" not in json.dumps(manifest.parity)
    engine = load("runs/tiny/model", device="cpu", threads=1)
    with pytest.raises(UserError, match=r"exported without its hidden states.*adaptive export RUN --onnx --embeddings"):
        engine.embed(["the sun"])


@pytest.mark.usefixtures("quick")
def test_wrong_hidden_states_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*given: Any, **options: Any) -> onnx.ModelProto:
        proto = build_portable(*given, **options)
        last = next(node for node in proto.graph.node if "hidden" in node.output)
        last.output[0] = "right"
        factor = onnx.numpy_helper.from_array(np.float32(1.003), "factor")
        proto.graph.initializer.append(factor)
        proto.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], ["hidden"]))
        return proto

    monkeypatch.setattr(package, "build", wrong)
    with pytest.raises(UserError, match="of hidden states"):
        run_export(str(run), tmp_path / "model", targets=(), threads=1, embeddings=True)
    assert not (tmp_path / "model").exists()


@needs_library
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_export_reports_how_far_rounding_turns_an_embedding(here: Path, precision: str) -> None:
    done = CliRunner().invoke(group, ["export", "tiny", "--embeddings", "--quantize", precision, "--threads", "1"])
    assert "least cosine of an embedding 0.9" in done.stderr, done.output
    manifest = Manifest.read("runs/tiny/model")
    for report in (manifest.parity, manifest.parity["targets"]["cpu"]):
        assert report["quantisation"]["least_embedding_cosine"] >= 0.9


@pytest.mark.usefixtures("quick")
def test_an_embedding_that_rounding_turns_away_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quantisation.LEAST_COSINE, "int8", 1.1)
    with pytest.raises(UserError, match=r"least cosine of an embedding 0\.9\d+, limit 1\.1"):
        run_export(str(run), tmp_path / "model", Precisions.of("int8"), targets=(), threads=1, embeddings=True)


@needs_library
@pytest.mark.parametrize(
    ("texts", "message"),
    [([""], "a text of 0 tokens, expected 1 to 256"), (["a" * 257], "a text of 257 tokens, expected 1 to 256")],
)
def test_a_text_that_cannot_be_embedded_is_refused(model: Path, texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(model, device="cpu", threads=1).embed(texts)


@needs_library
def test_a_text_may_fill_the_whole_context(model: Path) -> None:
    (vector,) = load(model, device="cpu", threads=1).embed(["a" * 256])
    assert vector.shape == (32,)
