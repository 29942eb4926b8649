"""The whole export of models with recurrent mixers: the check, the proofs, the targets, and what the runtime does."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.mixer_models import KINDS
from support.operators.our_library import needs_library
from support.runs import write_run

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.file_names import GRAPH, WEIGHTS
from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.package import write_files
from adaptive_lm.export.proof.check import check
from adaptive_lm.export.proof.judge import points
from adaptive_lm.export.proof.skipping import prove
from adaptive_lm.export.source import read
from adaptive_lm.runtime import Params, load
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format import manifest as manifest_module
from adaptive_lm.runtime.format.manifest import Manifest, Precision, Precisions

LISTS: dict[str, list[str]] = {
    "recurrent": ["rwkv7", "gated_delta", "mamba2", "retnet"],
    "hybrid": ["mamba2", "attention", "retnet", "gated_delta"],
}


@pytest.fixture(scope="module", params=LISTS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run with experts, depth routers and exits, all tokens by recurrent mixers or some layers by attention."""
    folder = tmp_path_factory.mktemp("mixers") / "runs" / "tiny"
    policy = "none" if request.param == "recurrent" else "project"
    depth = {"layers_share": 0.5, "skipped_kv": policy, "exit_layers": [0, 1]}
    return write_run(folder, mixers=LISTS[request.param], num_layers=4, depth=depth)


@needs_library
@pytest.mark.usefixtures("quick")
def test_every_target_passes_its_check_and_its_proof(run: Path, tmp_path: Path) -> None:
    passes_its_check_and_its_proof(run, tmp_path, "fp32")


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_every_target_passes_in_each_precision_with_all_tokens_of_a_check(
    run: Path, tmp_path: Path, precision: Precision
) -> None:
    passes_its_check_and_its_proof(run, tmp_path, precision)


def passes_its_check_and_its_proof(run: Path, tmp_path: Path, precision: Precision) -> None:
    targets = ["cpu"] if precision != "fp32" else ["cpu", "cuda"]
    lines: list[str] = []
    done = run_export(
        str(run), tmp_path / "model", Precisions.of(precision), targets=targets, threads=1, log=lines.append
    )
    manifest = Manifest.read(done.folder)
    assert done.report["skipping"]["passed"]
    assert set(manifest.targets) == set(targets)
    for name in targets:
        assert done.report["targets"][name]["passed"]
    assert done.report["targets"]["cpu"]["skipping"]["passed"], "bytes of weights read"
    assert done.report["targets"]["cpu"]["prompt_against_single_tokens"]["largest_logit_difference"] == 0
    mixers = [mixer for mixer in dict.fromkeys(layer.mixer for layer in manifest.model.layers) if mixer != "attention"]
    (line,) = [line for line in lines if line.startswith("target cpu:")]
    assert line.startswith("target cpu: our operators run embedding,")
    assert all(mixer in line for mixer in mixers)
    if "cuda" in targets:
        assert {manifest.targets["cuda"].mechanisms[mixer] for mixer in mixers} == {"standard operators"}


@needs_library
def test_the_targets_generate_the_same_text(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_files(read(run), folder, targets=["cpu"]).write(folder)
    texts = []
    for target in ("portable", "cpu"):
        engine = load(folder, device="cpu", target=target, threads=1)
        tokens = list(engine.generate("the sun", Params(temperature=0, max_new_tokens=24)))
        texts.append([token.id for token in tokens])
        usage = tokens[-1].usage
        assert 0 < usage.executed_flops < usage.dense_flops
    assert texts[0] == texts[1]


def test_the_profile_shows_the_layers_that_tokens_skip(run: Path, tmp_path: Path) -> None:
    source = read(run)
    manifest = write_files(source, tmp_path)
    ids = source.heldout_ids(9)[0].tolist()
    proof = prove(tmp_path, manifest, ids, list(points(source).values()))
    assert not proof.failures
    assert 0 < proof.layers_entered < len(ids) * 4


BREAKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a decay": lambda weights: weights["layers.3.mixer.A_log"].add_(0.01),
    "a time step": lambda weights: weights["layers.0.mixer.dt_bias"].add_(0.01),
    "the taps of a convolution": lambda weights: weights["layers.0.mixer.conv.weight"].mul_(1.01),
    "a projection": lambda weights: weights["layers.2.mixer.o.weight"].mul_(1.01),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_the_check_finds_a_graph_that_computes_something_else(broken: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "tiny", mixers=LISTS["hybrid"], num_layers=4)
    source = read(folder)
    (tmp_path / "model").mkdir()
    manifest = write_files(source, tmp_path / "model")
    other = copy.deepcopy(source.model)
    with torch.no_grad():
        BREAKS[broken](dict(other.named_parameters()))
    judge_of = copy.copy(source)
    object.__setattr__(judge_of, "model", other)
    outcome = check(judge_of, Session(tmp_path / "model", manifest, verify=False, threads=1), lambda line: None)
    assert outcome.failures


def test_a_program_from_before_asks_for_its_upgrade(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(read(run), tmp_path).write(tmp_path)
    monkeypatch.setattr(manifest_module, "FORMAT_VERSION", 2)
    with pytest.raises(UserError, match=r"format version 3, this program reads 1 to 2; upgrade this program"):
        Manifest.read(tmp_path)


def test_a_manifest_whose_states_do_not_fit_its_mixers_is_refused(run: Path, tmp_path: Path) -> None:
    write_files(read(run), tmp_path).write(tmp_path)
    path = tmp_path / "manifest.json"
    whole = path.read_text(encoding="utf-8")
    for change in (('"mixer": "mamba2"', '"mixer": "attention"'), ('"mixer": "mamba2"', '"mixer": "mamba3"')):
        path.write_text(whole.replace(*change), encoding="utf-8")
        with pytest.raises(UserError, match=r"is damaged: model.layers.*export the model again"):
            Manifest.read(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_come_out_of_a_model_without_attention(kind: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "tiny", mixers=kind)
    source = read(folder)
    (tmp_path / "model").mkdir()
    manifest = write_files(source, tmp_path / "model", hidden=True)
    session = Session(tmp_path / "model", manifest, verify=False, threads=1)
    ids = source.heldout_ids(12)
    with torch.no_grad():
        hidden = source.model(ids, source.thresholds()).hidden[0]
    sequence = session.sequence(capacity=12)
    step = sequence.prefill(ids[0].tolist(), 1)
    assert step.hidden is not None
    np.testing.assert_allclose(step.hidden, hidden.numpy(), rtol=0, atol=1e-3)
    assert not [name for name in onnx.load(tmp_path / "model" / GRAPH).graph.input if "key" in name.name]
    assert (tmp_path / "model" / WEIGHTS).exists()
