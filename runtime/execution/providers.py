"""Choose where a model runs: on CUDA if it really loads, else on the CPU.

ONNX Runtime lists CUDA if it was built with it, and prints errors when a session then requests it in vain. Therefore
this module asks the driver first, then loads the provider's library itself, and requests only what loads.
"""

import contextlib
import ctypes
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ...contract.errors import UserError, WrongUsageError

DeviceName = Literal["auto", "cpu", "cuda"]
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
EXACT_FLOAT32 = {"use_tf32": "0"}
"""Products of float32 keep 24 bits. TensorFloat32, ONNX Runtime's default, keeps 11 and would change decisions."""


@dataclass(frozen=True)
class Device:
    """A device, and how to request it."""

    name: Literal["cpu", "cuda"]
    providers: tuple[str | tuple[str, dict[str, str]], ...]
    """Execution providers of ONNX Runtime, in order of preference, some with options."""
    no_cuda: str | None = None
    """Why `auto` did not take CUDA; None where it did, or was not asked."""


def choose_device(name: str, why_no_cuda: Callable[[], str | None] | None = None) -> Device:
    """Choose a device.

    Args:
        name: "auto", "cpu" or "cuda".
        why_no_cuda: Returns the reason why CUDA cannot be used, None if it can; by default `find_cuda_problem`.

    Raises:
        UserError: CUDA is requested and does not load; the message says why.
        WrongUsageError: there is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise WrongUsageError(f"found device {name!r}, expected auto, cpu or cuda")
    if name != "cpu":
        problem = (why_no_cuda or find_cuda_problem)()
        if problem is None:
            return Device("cuda", ((CUDA, EXACT_FLOAT32), CPU))
        if name == "cuda":
            raise UserError(f"CUDA does not load here: {problem}; use --device cpu, or --device auto")
        return Device("cpu", (CPU,), problem)
    return Device("cpu", (CPU,))


@cache
def find_cuda_problem() -> str | None:
    """Return the reason why CUDA cannot be used here, None if it can. Prints nothing."""
    import onnxruntime  # here: 90 ms that `--help` does not pay

    if CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime was built without it (the package onnxruntime-gpu has it)"
    problem = find_driver_problem()
    if problem is not None:
        return problem
    capi = Path(onnxruntime.__file__).parent / "capi"
    problem = _find_library_problem(capi)
    if problem is None:
        return None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        onnxruntime.preload_dlls()  # finds libraries in pip packages, where the loader does not look
    return _find_library_problem(capi)


def find_driver_problem() -> str | None:
    """Return why the NVIDIA driver gives no device, None if it does. Its library comes with it, not with a package."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver ({error})"
    if code := driver.cuInit(0):
        return f"the NVIDIA driver does not start (code {code})"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return "the NVIDIA driver finds no device"
    return None


def _find_library_problem(capi: Path) -> str | None:
    """Load the provider's library as ONNX Runtime would, without its messages."""
    windows = sys.platform == "win32"
    form = "onnxruntime_providers_{}.dll" if windows else "libonnxruntime_providers_{}.so"
    mode = 0 if windows else ctypes.RTLD_GLOBAL  # the CUDA library uses symbols of the shared one
    try:
        for part in ("shared", "cuda"):
            ctypes.CDLL(str(capi / form.format(part)), mode=mode)
    except OSError as error:
        return f"{error}".replace(f"{capi}/", "")
    return None
