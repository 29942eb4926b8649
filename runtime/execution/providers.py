"""Where a model runs: CUDA when it really loads, else the CPU.

ONNX Runtime lists CUDA when it was built with it, and prints errors when a session then asks for it in vain. So this
asks the driver first, then loads the provider's library itself, and only what loads is asked for.
"""

import contextlib
import ctypes
import io
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ...contract.errors import UserError, WrongUsageError

DeviceName = Literal["auto", "cpu", "cuda"]
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Device:
    """`name` is "cpu" or "cuda"; `providers` is what the session asks for, in order."""

    name: Literal["cpu", "cuda"]
    providers: tuple[str, ...]


def choose_device(wanted: str) -> Device:
    """The device for `wanted` ("auto", "cpu" or "cuda"). Raises UserError for CUDA that does not load, saying why."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise WrongUsageError(f"found device {wanted!r}, expected auto, cpu or cuda")
    if wanted != "cpu":
        problem = why_no_cuda()
        if problem is None:
            return Device("cuda", (CUDA, CPU))
        if wanted == "cuda":
            raise UserError(f"CUDA does not load here: {problem}; use --device cpu, or --device auto")
    return Device("cpu", (CPU,))


@cache
def why_no_cuda() -> str | None:
    """Why CUDA cannot be used here, or None if it can. Prints nothing."""
    import onnxruntime  # here: 90 ms that `--help` does not pay

    if CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime was built without it (the package onnxruntime-gpu has it)"
    problem = _why_no_driver()
    if problem is not None:
        return problem
    capi = Path(onnxruntime.__file__).parent / "capi"
    problem = _why_not_loaded(capi)
    if problem is None:
        return None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        onnxruntime.preload_dlls()  # finds the libraries that pip packages bring, which the loader does not look for
    return _why_not_loaded(capi)


def _why_no_driver() -> str | None:
    """Asks the driver for its devices; the driver's library comes with it, not with any package."""
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


def _why_not_loaded(capi: Path) -> str | None:
    """Loads the provider's library as ONNX Runtime would, without its messages."""
    windows = sys.platform == "win32"
    form = "onnxruntime_providers_{}.dll" if windows else "libonnxruntime_providers_{}.so"
    mode = 0 if windows else ctypes.RTLD_GLOBAL  # the CUDA library uses symbols of the shared one
    try:
        for part in ("shared", "cuda"):
            ctypes.CDLL(str(capi / form.format(part)), mode=mode)
    except OSError as error:
        return f"{error}".replace(f"{capi}/", "")
    return None
