"""CUDA if it loads, else the CPU, without output on stderr."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptive_lm.runtime import UserError, load
from adaptive_lm.runtime.execution.providers import Device, choose_device, find_cuda_problem


@pytest.fixture(autouse=True)
def _ask_anew() -> Iterator[None]:
    find_cuda_problem.cache_clear()
    yield
    find_cuda_problem.cache_clear()


def test_the_cpu_is_taken_without_asking_for_cuda() -> None:
    assert choose_device("cpu", lambda: pytest.fail("asked")) == Device("cpu", ("CPUExecutionProvider",))


def test_auto_takes_cuda_only_where_it_loads() -> None:
    cuda, cpu = ("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"
    assert choose_device("auto", lambda: None) == Device("cuda", (cuda, cpu))
    assert choose_device("auto", lambda: "no driver") == Device("cpu", (cpu,), "no driver")


def test_cuda_requested_in_vain_says_why() -> None:
    with pytest.raises(UserError, match=r"CUDA does not load here: libcublas\.so\.13 is missing; use --device cpu"):
        choose_device("cuda", lambda: "libcublas.so.13 is missing")


def test_a_driver_without_device_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
            return 100

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    assert find_cuda_problem() == "the NVIDIA driver does not start (code 100)"


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="found device 'tpu', expected auto, cpu or cuda"):
        choose_device("tpu")


def test_loading_and_generating_is_quiet(model: Path) -> None:
    code = (
        "import sys\nfrom adaptive_lm.runtime import Params, load\n"
        f"engine = load({str(model)!r})\nlist(engine.generate('hello', Params(max_new_tokens=3)))\n"
        "assert not {'torch', 'onnx'} & sys.modules.keys()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_room_imports_nothing_heavy_until_it_loads() -> None:
    code = (
        "import sys\nimport adaptive_lm.runtime\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'tokenizers', 'pydantic'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_engine_says_where_it_runs(model: Path) -> None:
    assert load(model, device="auto", threads=1).session.device.name in ("cpu", "cuda")
