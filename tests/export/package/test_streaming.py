"""Models whose matrices are read when they run, as those larger than memory are."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.models import tiny_ids
from support.operators.our_library import needs_library
from support.runs import store_in, write_run

from adaptive_lm.export import streaming
from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.proof import scratch
from adaptive_lm.export.proof.judge import Judge, rounded_model, rounding_of
from adaptive_lm.export.source import read
from adaptive_lm.export.streaming import copy_with_rounding, is_streamed, load
from adaptive_lm.runtime.format.manifest import Manifest, Precision, Precisions
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "dense": {"ffn": {"routing": "dense", "dim": 40}},
    "shared": {"ffn": {"shared_expert_dim": 20}, "heads": {"routing": "top_p"}},
    "cope": {"heads": {"routing": "adaptive"}, "attention": {"positions": "cope", "max_positions": 8, "window": 8}},
}


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stream every model, and put every array of a check on the disk."""
    monkeypatch.setattr(streaming, "RESIDENT", 0)
    monkeypatch.setattr(streaming, "ROWS", 2**10)  # eight rows of 32
    monkeypatch.setattr(scratch, "LARGE", 1)


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(write_run(tmp_path_factory.mktemp("runs") / "tiny", **KINDS[request.param]))


def outputs(model: Transformer) -> list[torch.Tensor]:
    ids = tiny_ids(2, batch=2).clamp(max=model.config.vocab_size - 1)
    with torch.no_grad():
        out = model(ids, model.default_thresholds())
    return [out.logits, out.exit_layer, *(layer.runs for layer in out.routing)]


def all_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_streamed_model_computes_the_same_bits(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    config = checkpoint.config.model
    plain = Transformer(config).eval()
    plain.load_state_dict(checkpoint.model_state)
    resident = load(config, checkpoint.model_state)
    assert not is_streamed(resident)
    monkeypatch.setattr(streaming, "RESIDENT", 0)
    model = load(config, checkpoint.model_state)
    assert is_streamed(model)
    in_memory = {name for name, value in model.named_parameters() if not value.is_meta}
    assert not any(name.endswith(("q.weight", "gate_up", "down", "embedding.weight")) for name in in_memory)
    for _ in range(2):  # the matrices are freed after a pass, and read again by the next
        assert all_equal(outputs(model), outputs(plain))
    assert all_equal(outputs(resident), outputs(plain))
    assert {name for name, value in model.named_parameters() if not value.is_meta} == in_memory


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_streamed_model_is_rounded_as_one_in_memory(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, target: str, precision: Precision
) -> None:
    config, tensors, precisions = checkpoint.config.model, checkpoint.model_state, Precisions.of(precision)
    expected = rounded_model(load(config, tensors), target, precisions)
    monkeypatch.setattr(streaming, "RESIDENT", 0)
    monkeypatch.setattr(streaming, "ROWS", 2**20)
    rounded = copy_with_rounding(load(config, tensors), tensors, rounding_of(target, precisions))
    assert all_equal(outputs(rounded), outputs(expected))
    assert not all_equal(outputs(rounded), outputs(load(config, tensors)))


@pytest.mark.usefixtures("streamed")
def test_the_matrices_of_a_layer_are_freed_after_an_error(checkpoint: Checkpoint) -> None:
    model = load(checkpoint.config.model, checkpoint.model_state)
    hook = model.blocks()[0].attention.o.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        outputs(model)
    hook.remove()
    assert model.blocks()[0].attention.q.weight.is_meta


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_state_that_does_not_fit_is_refused_by_name(checkpoint: Checkpoint, change: str) -> None:
    state = dict(checkpoint.model_state)
    if change == "missing":
        del state["layers.1.attention.q.weight"]
    elif change == "unknown":
        state["layers.1.attention.extra"] = torch.zeros(1)
    else:
        state["layers.1.attention.q.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.(q\.weight|extra)"):
        load(checkpoint.config.model, state)


def passed(report: dict[str, Any]) -> dict[str, bool]:
    return {name: part["passed"] for name, part in report.items() if isinstance(part, dict) and "passed" in part}


@pytest.mark.usefixtures("quick")
def test_an_export_of_a_streamed_model_is_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "runs" / "tiny")
    for precision in ("fp32", "int4"):
        whole = run_export(str(run), tmp_path / precision / "whole", Precisions.of(precision), threads=1)
        with monkeypatch.context() as patch:
            patch.setattr(streaming, "RESIDENT", 0)
            patch.setattr(scratch, "LARGE", 1)
            streamed = run_export(str(run), tmp_path / precision / "streamed", Precisions.of(precision), threads=1)
        names = sorted(path.name for path in whole.folder.iterdir())
        assert sorted(path.name for path in streamed.folder.iterdir()) == names
        for name in names:
            if name != "manifest.json":
                assert (whole.folder / name).read_bytes() == (streamed.folder / name).read_bytes(), name
        one, other = (Manifest.read(each.folder).model_dump() for each in (whole, streamed))
        judged = [passed(manifest.pop("parity")) for manifest in (one, other)]
        assert one == other
        assert judged[0] == judged[1]
        assert len(judged[0]) >= 4


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("resident", [False, True])
def test_a_checkpoint_in_half_precision_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, resident: bool
) -> None:
    run = write_run(tmp_path / "runs" / "tiny")
    store_in(run, dtype)
    if not resident:
        monkeypatch.setattr(streaming, "RESIDENT", 0)
    exported = run_export(str(run), threads=1)
    assert exported.report["passed"] is True
    source = read(run)
    for name, value in source.weights().items():
        assert value.dtype == np.float32
        expected = source.checkpoint.model_state.get(name)
        assert expected is None or np.array_equal(np.asarray(value), expected.float().numpy())


@pytest.mark.usefixtures("streamed")
def test_a_weight_that_is_not_finite_is_found_in_a_streamed_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "tiny")
    checkpoint = load_checkpoint(run)
    state = dict(checkpoint.model_state)
    state["layers.1.moe.down"] = state["layers.1.moe.down"].clone().index_fill_(0, torch.tensor([3]), torch.inf)
    save_checkpoint(run / "checkpoints", checkpoint.step, checkpoint.config, state, {}, {})
    with pytest.raises(Exception, match="not finite"):
        read(run)


@needs_library
@pytest.mark.usefixtures("quick")
def test_only_one_session_is_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session holds a copy of its matrices: two of them would break the memory rule."""
    opened: list[weakref.ref[Any]] = []
    true = onnxruntime.InferenceSession

    class Watched(true):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            assert not [one for one in opened if one() is not None], "the session before is still open"
            opened.append(weakref.ref(self))
            super().__init__(*arguments, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Watched)
    run_export(str(write_run(tmp_path / "runs" / "tiny")), targets=["cpu", "cuda"], threads=1)
    assert len(opened) >= 4


@pytest.mark.usefixtures("streamed")
def test_large_logits_of_a_check_are_on_the_disk(tmp_path: Path) -> None:
    source = read(write_run(tmp_path / "runs" / "tiny"))
    judge = Judge(source)
    one = judge.passes("portable", Precisions.of("fp32"), "trained")[0]
    assert not isinstance(one.logits, np.ndarray)
    again = np.asarray(one.logits)
    assert np.array_equal(again[3:9], one.logits[3:9])
    with torch.no_grad():
        together = source.model(torch.cat(judge.windows), judge.points["trained"])
    assert np.array_equal(again, together.logits[0].numpy())
