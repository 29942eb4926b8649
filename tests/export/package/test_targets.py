"""The graphs of one folder: what the manifest says of each, what `adaptive export` accepts and prints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from support.operators.our_library import MISSING, needs_library
from support.runs import write_run

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.file_names import GRAPH, MANIFEST, WEIGHTS, target_files
from adaptive_lm.export import exporter, package
from adaptive_lm.export.exporter import Exported, run_export
from adaptive_lm.export.fused import transformer as fused_transformer
from adaptive_lm.export.proof import check as check_module
from adaptive_lm.export.proof.check import check
from adaptive_lm.export.proof.judge import Judge
from adaptive_lm.export.source import Source
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.manifest import Manifest, Precision, Precisions
from adaptive_lm.runtime.ops.library import VERSION, NoLibraryError
from adaptive_lm.serve.cli import group

CPU_GRAPH, CPU_WEIGHTS = target_files("cpu")


def adaptive(*arguments: str) -> Result:
    return CliRunner().invoke(group, ["export", "--threads", "1", *arguments])


def write_packed_only(
    source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]
) -> Session:
    """Write a model whose graph of our operators alone is built from changed weights."""
    true = exporter.write_files.__globals__["build_fused"]

    def changed(config: Any, state: dict[str, Any], *more: Any, **options: Any) -> onnx.ModelProto:
        own = {name: np.array(value) for name, value in state.items()}
        change(own)
        proto: onnx.ModelProto = true(config, own, *more, **options)
        return proto

    monkeypatch.setitem(exporter.write_files.__globals__, "build_fused", changed)
    folder.mkdir(exist_ok=True)
    manifest = exporter.write_files(source, folder, targets=["cpu"])
    return Session(folder, manifest, device="cpu", target="cpu", threads=1, verify=False)


def test_the_manifest_tells_what_the_second_graph_is(exported: Exported) -> None:
    manifest = Manifest.read(exported.folder)
    assert list(manifest.targets) == ["cpu"]
    target = manifest.targets["cpu"]
    assert (target.graph, target.data) == (CPU_GRAPH, CPU_WEIGHTS)
    assert (target.operators, target.kv) == (VERSION, "fp32")
    assert target.precisions == manifest.model.precisions == Precisions.of("fp32")
    assert set(target.mechanisms) == {
        "embedding", "attention", "experts", "depth routing", "early exits", "output head"
    }  # fmt: skip
    assert set(target.mechanisms.values()) == {"our operators"}
    assert len(target.costs.weight_bytes.layers) == manifest.model.num_layers
    assert set(manifest.files) == {GRAPH, WEIGHTS, CPU_GRAPH, CPU_WEIGHTS, "tokenizer.json"}


@needs_library
def test_the_report_of_the_second_graph_stands_beside_that_of_the_first(exported: Exported) -> None:
    report = exported.report["targets"]["cpu"]
    settings = ("trained", "everything", "little")
    compared = {f"{judge}_thresholds_{name}" for judge in ("torch", "portable") for name in settings}
    assert set(report) == compared | {
        "precision", "prompt_against_single_tokens", "continuation", "skipping", "passed", "checked", "kernel"
    }  # fmt: skip
    assert all(report[name]["wrong_decisions"] == 0 and report[name]["tokens"] == 1024 for name in compared)
    assert report["prompt_against_single_tokens"]["largest_logit_difference"] == 0
    assert report["prompt_against_single_tokens"]["tolerance"] == 0
    assert report["continuation"]["judge"] == "torch"
    assert 0 < report["skipping"]["bytes_read"] < report["skipping"]["bytes_dense"]
    assert (report["checked"], report["passed"]) == (True, True)


@needs_library
def test_the_report_of_int8_measures_both_graphs(exported_int8: Exported) -> None:
    portable, cpu = exported_int8.report["quantisation"], exported_int8.report["targets"]["cpu"]["quantisation"]
    assert portable["bits_per_byte_torch"] == cpu["bits_per_byte_torch"]
    assert portable["bits_per_byte"] != cpu["bits_per_byte"], "scales of a row and scales of a block"
    assert 0 < cpu["flipped_decisions_share"] < 0.05
    assert exported_int8.report["targets"]["cpu"]["continuation"]["judge"] == "one prompt"


@needs_library
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "place", "by"),
    [
        ("layers.0.attention.q.weight", (3, 5), 0.05),
        ("layers.1.moe.gate_up", (2, 7, 11), 0.2),
        ("layers.2.moe.router.weight", (1, 4), 0.1),
        ("layers.1.depth_router.bias", (), 0.1),
        ("layers.2.attention.k_norm.weight", (1,), 0.05),
        ("head.weight", (9, 2), 0.01),
        ("norm.weight", (30,), 0.01),
    ],
)
def test_one_weight_of_the_second_graph_that_is_a_little_off_is_found(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: tuple[int, ...], by: float
) -> None:
    def change(state: dict[str, Any]) -> None:
        state[name][place] += by

    session = write_packed_only(source, tmp_path / "model", monkeypatch, change)
    judge = Judge(source)
    portable = Session(tmp_path / "model", session.manifest, device="cpu", target="portable", threads=1, verify=False)
    first = check(source, portable, lambda line: None, judge)
    assert first.report["passed"] is True
    second = check(source, session, lambda line: None, judge, first.passes)
    assert second.report["passed"] is False
    assert any(not second.report[f"portable_thresholds_{at}"]["passed"] for at in ("trained", "everything", "little"))


@needs_library
@pytest.mark.usefixtures("quick")
def test_a_bit_that_differs_between_prompt_and_token_is_found_in_our_operators(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = write_packed_only(source, tmp_path / "model", monkeypatch, lambda state: None)
    true = check_module.token_pass

    def off_by_a_bit(*arguments: Any) -> Any:
        one = true(*arguments)
        one.logits[3, 2] = one.logits[3, 2] * (1 + 1e-7)
        return one

    monkeypatch.setattr(check_module, "token_pass", off_by_a_bit)
    outcome = check(source, session, lambda line: None)
    assert outcome.report["prompt_against_single_tokens"]["passed"] is False
    assert outcome.report["torch_thresholds_trained"]["passed"] is True


@needs_library
@pytest.mark.usefixtures("quick")
def test_a_fault_of_the_second_graph_alone_leaves_the_folder_as_it_was(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = fused_transformer.ours

    def wrong_eps(*arguments: Any, **attributes: Any) -> Any:
        return true(*arguments, **attributes | ({"eps": 0.1} if arguments[1] == "Logits" else {}))

    monkeypatch.setattr(fused_transformer, "ours", wrong_eps)
    with pytest.raises(UserError, match=r"(?s)does not match the model, so .*cpu graph vs torch") as caught:
        run_export("tiny", threads=1)
    assert "please report it" in str(caught.value)
    assert not (here / "runs" / "tiny" / "model").exists()


@pytest.mark.usefixtures("quick")
def test_without_the_library_the_second_graph_is_written_and_said_to_be_unchecked(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise NoLibraryError("they were not built")

    monkeypatch.setattr(exporter, "load_library", none)
    done = adaptive("tiny")
    assert done.exit_code == 0, done.output
    assert "the graph of the target cpu was written, but not checked here: they were not built\n" in done.stderr
    manifest = Manifest.read("runs/tiny/model")
    assert manifest.parity["targets"] == {"cpu": {"checked": False, "reason": "they were not built"}}
    assert CPU_GRAPH in manifest.files


@pytest.mark.usefixtures("quick")
def test_targets_are_chosen_and_the_portable_one_is_always_there(here: Path) -> None:
    for arguments, targets in ((["--target", "portable"], []), (["--target", "cpu"], ["cpu"]), ([], ["cpu"])):
        done = adaptive("tiny", *arguments)
        assert done.exit_code == 0, done.output
        manifest = Manifest.read("runs/tiny/model")
        assert list(manifest.targets) == targets
        assert (CPU_GRAPH in manifest.files) is bool(targets)
        assert {path.name for path in Path("runs/tiny/model").iterdir()} == {*manifest.files, MANIFEST}
        assert ("target cpu: our operators run embedding, attention, experts" in done.stderr) is bool(targets)
        assert GRAPH in manifest.files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quantize", "fp16"], "fp16 is for the target cuda, found the targets portable, cpu; give --target cuda "),
        (
            ["--quantize", "experts=fp16", "--target", "cpu", "--target", "cuda"],
            "found the targets portable, cpu, cuda",
        ),
        (["--quantize", "int8", "--target", "cuda"], "has fp32, bf16 and fp16, found int8; use --quantize fp16, or "),
        (["--quantize", "head=int4", "--target", "cuda"], "has fp32, bf16 and fp16, found int4"),
    ],
    ids=["fp16 cpu", "fp16 cpu and cuda", "int8 cuda", "int4 head cuda"],
)
def test_a_precision_that_a_target_does_not_have_is_refused_before_anything_is_read(
    here: Path, arguments: list[str], message: str
) -> None:
    done = adaptive("nothing", *arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert message in done.stderr


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("quantize", "precision", "kv"), [([], "fp32", "fp32"), (["--quantize", "fp16"], "fp16", "fp16")]
)
def test_the_target_cuda_is_written_checked_and_described(
    here: Path, quantize: list[str], precision: Precision, kv: str
) -> None:
    done = adaptive("tiny", "--target", "cuda", *quantize)
    assert done.exit_code == 0, done.output
    manifest = Manifest.read("runs/tiny/model")
    target = manifest.targets["cuda"]
    assert list(manifest.targets) == ["cuda"]
    assert (target.graph, target.data) == target_files("cuda")
    assert (target.operators, target.kv, target.precisions) == (0, kv, Precisions.of(precision))
    assert manifest.parity["targets"]["cuda"]["passed"] is True
    assert manifest.parity["targets"]["cuda"]["device"] == "cpu"
    assert target.mechanisms["experts"] == "contrib operators (all computed)"
    assert target.mechanisms["depth routing"] == "standard operators (skipped where no token runs)"
    assert "contrib operators (all computed) run experts" in done.stderr
    layers = target.costs.weight_bytes.layers
    assert {layer.expert for layer in layers} == {0}, "every expert is read whatever was chosen"
    size = 4 if precision == "fp32" else 2
    assert layers[0].shared_expert == size * 4 * 3 * manifest.model.dim * 16  # 4 experts of three matrices, 16 hidden


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("quantize", [[], ["--quantize", "fp16"]], ids=["fp32", "fp16"])
def test_one_weight_of_the_graph_for_cuda_that_is_off_is_found(
    here: Path, monkeypatch: pytest.MonkeyPatch, quantize: list[str]
) -> None:
    true = package.build_cuda

    def changed(config: Any, state: dict[str, Any], *more: Any, **options: Any) -> onnx.ModelProto:
        own = {name: np.array(value) for name, value in state.items()}
        own["layers.1.moe.down"][2] *= 3
        proto: onnx.ModelProto = true(config, own, *more, **options)
        return proto

    monkeypatch.setattr(package, "build_cuda", changed)
    done = adaptive("tiny", "--target", "cuda", *quantize)
    assert done.exit_code == 1
    assert "cuda graph" in done.stderr
    assert not Path("runs/tiny/model").exists()


@pytest.mark.usefixtures("quick")
def test_a_session_on_the_cpu_runs_the_graph_for_cuda_where_it_is_told_to(here: Path) -> None:
    assert adaptive("tiny", "--target", "cuda").exit_code == 0
    text = list(range(3, 20))
    steps = [
        Session("runs/tiny/model", device="cpu", target=target, threads=1).sequence(capacity=64).prefill(text, 17)
        for target in ("portable", "cuda")
    ]
    np.testing.assert_allclose(steps[1].logits, steps[0].logits, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(steps[1].routes.selected_experts, steps[0].routes.selected_experts)
    assert Session("runs/tiny/model", device="cpu").target == "portable"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--quantize", "int4"], ("int4", "int4", "int8", "int8")),
        pytest.param(["--quantize", "bf16"], ("bf16",) * 4, marks=pytest.mark.slow),
        (["--quantize", "experts=int4", "--quantize", "head=int8"], ("int4", "fp32", "fp32", "int8")),
        (["--quantize", "attention=bf16", "--quantize", "int8"], ("int8", "bf16", "int8", "int8")),
        pytest.param(["--quantize", "none"], ("fp32",) * 4, marks=pytest.mark.slow),
    ],
)
def test_a_precision_is_for_all_or_for_a_part(
    here: Path, arguments: list[str], expected: tuple[Precision, ...]
) -> None:
    done = adaptive("tiny", "--kv", "fp16", *arguments)
    assert done.exit_code == 0, done.output
    manifest = Manifest.read("runs/tiny/model")
    precisions = Precisions(**dict(zip(("experts", "attention", "embedding", "head"), expected, strict=True)))
    assert manifest.targets["cpu"].precisions == manifest.model.precisions == precisions
    assert manifest.model.precision == precisions.narrowest
    assert manifest.targets["cpu"].kv == "fp16"
    cache = manifest.inputs["past_key.0"]
    assert (cache.dtype, cache.shape) == ("float32", ["B", 2, "C", 8]), "the inputs are those of the portable graph"
    if MISSING is None or precisions != Precisions.of("fp32"):
        table = done.stderr[done.stderr.index("bits per byte  flipped decisions") :].splitlines()
        assert [row.split()[0] for row in table[1:4]] == ["fp32", "portable", "cpu"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quantize", "int3"], "found 'int3', expected int8, int4, bf16 or fp16, or a part and its precision"),
        (["--quantize", "router=int8"], "parts are experts, attention, embedding, head"),
        (["--quantize", "experts=none"], "found 'experts=none'"),
        (["--quantize", "int8", "--quantize", "int4"], "found --quantize int8 and int4; give one of them"),
        (["--quantize", "head=int8", "--quantize", "head=int4"], "found --quantize head=int8 and head=int4"),
        (["--kv", "int4"], "'int4' is not one of 'fp32', 'fp16', 'int8'"),
        (["--target", "gpu"], "'gpu' is not one of"),
    ],
)
def test_a_wrong_choice_says_what_there_is(here: Path, arguments: list[str], words: str) -> None:
    done = adaptive("tiny", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in " ".join(done.stderr.split())


def test_a_matrix_that_is_embedding_and_head_has_one_precision(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "tied", tie_embeddings=True)
    done = adaptive(str(run), "--quantize", "head=int8")
    assert done.exit_code == 1
    assert "embedding and output head are one matrix in this model (tie_embeddings), found fp32 and int8" in done.stderr
    cure = done.stderr.rsplit("precision: ", 1)[1].split()
    assert cure == ["--quantize", "embedding=int8", "--quantize", "head=int8"]
    assert adaptive(str(run), *cure).exit_code == 0
