"""The choice of a graph, the library of our operators, and the digests of the files that are used."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.operators.our_library import needs_library

from adaptive_lm.contract.errors import UserError, WrongUsageError
from adaptive_lm.runtime import load
from adaptive_lm.runtime.execution import targets
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.execution.targets import choose_target
from adaptive_lm.runtime.format.files import checking_digests, digest
from adaptive_lm.runtime.ops import library
from adaptive_lm.runtime.ops.library import VERSION, NoLibraryError, load_library
from adaptive_lm.runtime.ops.probe import probe_answer

CPU = {"graph": "model.cpu.onnx", "data": "model.cpu.onnx.data", "kv": "fp16", "costs": "its own costs"}


def manifest(**names: Any) -> Any:
    """Return what the choice reads of a manifest: the targets besides the portable one."""
    return SimpleNamespace(
        costs="portable costs", targets={n: SimpleNamespace(**values) for n, values in names.items()}
    )


@pytest.fixture
def library_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Return a function that puts a library in place, or the reason why there is none."""

    def put(reason: str | None) -> None:
        def found() -> Any:
            if reason is not None:
                raise NoLibraryError(reason)
            return SimpleNamespace(kernel="avx2")

        monkeypatch.setattr(targets, "load_library", found)

    return put


def test_auto_takes_the_graph_of_our_operators_where_they_work(library_of: Callable[[str | None], None]) -> None:
    library_of(None)
    chosen = choose_target(manifest(cpu=CPU | {"operators": VERSION}), "auto", "cpu")
    assert (chosen.name, chosen.graph, chosen.kv, chosen.costs) == ("cpu", "model.cpu.onnx", "fp16", "its own costs")
    assert (chosen.kernel, chosen.note) == ("avx2", None)


@pytest.mark.parametrize(
    ("operators", "reason", "note"),
    [
        (VERSION, "there was no C++ compiler", "running the portable graph: there was no C++ compiler"),
        (VERSION + 1, None, f"the model needs operators of version {VERSION + 1}, this program has {VERSION}"),
    ],
    ids=["no library", "another version"],
)
def test_auto_takes_the_portable_graph_otherwise_and_says_why(
    library_of: Callable[[str | None], None], operators: int, reason: str | None, note: str
) -> None:
    library_of(reason)
    model = manifest(cpu=CPU | {"operators": operators})
    chosen = choose_target(model, "auto", "cpu")
    assert (chosen.name, chosen.graph, chosen.costs, chosen.kernel) == (
        "portable",
        "model.onnx",
        "portable costs",
        None,
    )
    assert note in str(chosen.note)
    with pytest.raises(UserError, match=r"our operators cannot be used here: .*; use --target portable"):
        choose_target(model, "cpu", "cpu")


def test_a_model_without_another_graph_runs_portably_without_a_note() -> None:
    assert choose_target(manifest(), "auto", "cpu").note is None
    assert choose_target(manifest(cpu=CPU | {"operators": VERSION}), "portable", "cpu").name == "portable"


def test_on_cuda_the_graph_for_the_cpu_is_not_taken(library_of: Callable[[str | None], None]) -> None:
    library_of(None)
    model = manifest(cpu=CPU | {"operators": VERSION})
    assert choose_target(model, "auto", "cuda").name == "portable"
    with pytest.raises(UserError, match="the target cpu runs on the device cpu, found cuda; use --device cpu"):
        choose_target(model, "cpu", "cuda")


CUDA = {"graph": "model.cuda.onnx", "data": "model.cuda.onnx.data", "kv": "fp16", "costs": "dear", "operators": 0}
NO_DRIVER = "no NVIDIA driver"


def test_on_cuda_the_graph_for_cuda_is_taken() -> None:
    model = manifest(cuda=CUDA)
    for wanted in ("auto", "cuda"):
        chosen = choose_target(model, wanted, "cuda")
        assert (chosen.name, chosen.graph, chosen.kv, chosen.library, chosen.note) == (
            "cuda",
            "model.cuda.onnx",
            "fp16",
            None,
            None,
        )


def test_a_model_with_a_graph_for_cuda_says_why_it_does_not_run_on_cuda(
    library_of: Callable[[str | None], None],
) -> None:
    library_of(None)
    both = manifest(cuda=CUDA, cpu=CPU | {"operators": VERSION})
    for model, name in ((manifest(cuda=CUDA), "portable"), (both, "cpu")):
        chosen = choose_target(model, "auto", "cpu", NO_DRIVER)
        assert (chosen.name, chosen.note) == (name, f"not running on CUDA: {NO_DRIVER}")
        assert choose_target(model, "auto", "cpu").note is None, "the CPU was asked for"
    assert choose_target(manifest(cpu=CPU | {"operators": VERSION}), "auto", "cpu", NO_DRIVER).note is None


def test_the_graph_for_cuda_runs_on_the_cpu_only_where_the_cpu_is_asked_for() -> None:
    assert choose_target(manifest(cuda=CUDA), "cuda", "cpu").name == "cuda"
    with pytest.raises(UserError, match="not load here: no NVIDIA driver; use --target portable, or --device cpu to"):
        choose_target(manifest(cuda=CUDA), "cuda", "cpu", NO_DRIVER)


def test_a_target_that_the_model_does_not_have_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match=r"no graph for the target cpu, only portable; .*adaptive export --target cpu"):
        Session(model, device="cpu", target="cpu")
    with pytest.raises(WrongUsageError, match="found target 'fast', expected auto, portable, cpu or cuda"):
        Session(model, device="cpu", target="fast")


@pytest.fixture
def another_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Return a function that makes another file the library, loaded anew, until the test ends."""
    load_library.cache_clear()
    yield lambda path: monkeypatch.setenv(library.PATH_VARIABLE, str(path))
    load_library.cache_clear()


def test_a_library_that_was_not_built_is_reported(another_library: Callable[[Path], None], tmp_path: Path) -> None:
    another_library(tmp_path / "nothing.so")
    with pytest.raises(NoLibraryError, match="they were not built when adaptive was installed"):
        load_library()


def test_a_file_that_is_no_library_is_reported(another_library: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    another_library(tmp_path / "text.so")
    with pytest.raises(NoLibraryError, match="the library does not load"):
        load_library()


@needs_library
def test_a_library_of_another_version_is_not_used(
    another_library: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    another_library(library.PATH)
    monkeypatch.setattr(library, "VERSION", VERSION + 1)
    with pytest.raises(NoLibraryError, match=f"is of version {VERSION}, expected {VERSION + 1}"):
        load_library()


@needs_library
def test_a_library_that_multiplies_wrongly_is_not_used(
    another_library: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    another_library(library.PATH)
    monkeypatch.setattr(library, "probe_answer", lambda: probe_answer() + 0.01)
    with pytest.raises(NoLibraryError, match="a wrong answer to a known product"):
        load_library()


@needs_library
def test_an_older_onnxruntime_is_not_given_the_library(
    another_library: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    another_library(library.PATH)
    monkeypatch.setattr(library, "OLDEST_ONNXRUNTIME", (99, 0))
    with pytest.raises(NoLibraryError, match=r"expected 99\.0 or later"):
        load_library()


def test_weights_that_changed_are_found_while_the_graph_opens(copy: Path) -> None:
    weights = copy / "model.onnx.data"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.onnx\.data is damaged: found sha256"):
        load(copy, device="cpu")
    assert load(copy, device="cpu", verify=False)


def test_a_graph_that_changed_is_found_before_onnx_runtime_reads_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "_open", lambda session, path: pytest.fail("the graph was opened"))
    graph = copy / "model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content.replace(b"router_top_p", b"router_top_q"))
    with pytest.raises(UserError, match=r"model\.onnx is damaged: found sha256"):
        load(copy, device="cpu")


def test_a_tokenizer_that_changed_is_found(copy: Path) -> None:
    path = copy / "tokenizer.json"
    path.write_bytes(b" " + path.read_bytes()[1:])
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged: found sha256"):
        load(copy, device="cpu")


def test_of_two_reasons_the_digest_counts(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"changed")
    with pytest.raises(UserError, match="is damaged"), checking_digests({path: "0" * 64}):
        raise RuntimeError("what ONNX Runtime says of damaged weights")
    with pytest.raises(RuntimeError, match="something else"), checking_digests({path: digest(path)}):
        raise RuntimeError("something else")
