"""The GPU benchmark: what it says without a GPU, how it isolates its parts, and its tables."""

import json
import subprocess
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def gpu() -> ModuleType:
    return import_module("gpu")


@pytest.fixture
def report_of() -> ModuleType:
    return import_module("accelerator.report")


@pytest.mark.parametrize("target", ["gpu", "gpu-quick"])
def test_without_a_gpu_make_says_so_in_one_line_and_exits_with_2(target: str, gpu: ModuleType) -> None:
    if gpu.find_driver_problem() is None:
        pytest.skip("there is a GPU")
    done = subprocess.run(["make", "--silent", target, f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True,
                          text=True, check=False)  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert (done.returncode, done.stdout, len(ours)) == (2, "", 1)
    assert ours[0].startswith("no GPU here: ")
    assert not (ROOT / ".venv-gpu").exists()


def test_it_needs_no_package_to_find_that_there_is_no_gpu(gpu: ModuleType) -> None:
    if gpu.find_driver_problem() is None:
        pytest.skip("there is a GPU")
    bare = [sys.executable, "-I", "-S", str(FOLDER / "gpu.py")]
    assert subprocess.run(bare, capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize(
    ("end", "failures"),
    [
        ("", []),
        ("raise SystemExit(3)", ["ended with exit code 3"]),
        ("import time; time.sleep(60)", ["stopped after 6 s, before its end"]),
    ],
    ids=["done", "failed", "too slow"],
)
def test_a_part_that_fails_or_is_too_slow_keeps_what_it_measured(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, failures: list[str]
) -> None:
    (tmp_path / "accelerator").mkdir()
    measured = json.dumps({"rows": [1], "facts": {}, "failures": []})
    script = f"print({measured!r}, flush=True)\n{end}"
    (tmp_path / "accelerator" / "decode.py").write_text(script, encoding="utf-8")
    monkeypatch.setattr(gpu, "FOLDER", tmp_path)
    asked = Namespace(device="cpu", small=True, data="builtin:facts")
    result = gpu.run_part(sys.executable, "decode", asked, 6, tmp_path)
    assert (result["rows"], result["failures"]) == ([1], failures)


def test_the_seconds_of_the_parts_leave_room_for_starting_them(gpu: ModuleType) -> None:
    whole, quick = (sum(seconds[index] for seconds in gpu.PARTS.values()) for index in (0, 1))
    assert whole <= 570
    assert quick <= 230


def test_the_report_says_which_part_failed_and_that_the_peak_is_unknown(report_of: ModuleType) -> None:
    part = {"rows": [], "facts": {}, "failures": []}
    step = {
        "name": "dense", "compiled": True, "precision": "bf16", "batch": 16, "length": 512, "weights": 1.1e8,
        "ms": [100.0, 90.0, 120.0], "tokens_per_second": 81920.0, "tflops": 54.0, "steps": 20, "share_of_peak": None,
        "warm_up_seconds": 30.0,
    }  # fmt: skip
    report = {
        "quick": False, "small": False, "device": "cuda", "seconds": 500.0,
        "machine": {"gpu": "Some GPU", "memory_bytes": 2**36, "torch": "2.13.0", "date": "2026-11-27"},
        "parts": {
            "decode": {**part, "failures": ["opening cuda, fp16: RuntimeError: no"]},
            "train": {**part, "rows": [step]},
        },
    }  # fmt: skip
    text = report_of.markdown(report)
    assert "Some GPU, 64 GiB" in text
    assert "**decode failed:** opening cuda, fp16: RuntimeError: no" in text
    assert "| dense | yes | bf16 | 16 x 512 | 110M | 100.0 (90.0 to 120.0) | 81920 | 54.0 | unknown | 30 |" in text


def test_the_parity_models_have_every_mechanism() -> None:
    parity = import_module("accelerator.parity")
    assert json.dumps(parity.MODELS["everything"]).count("top_p") == 1
    assert {"heads", "attention", "depth"} <= parity.MODELS["everything"].keys()
