"""The device and the precision of a run, and the versions of the software that ran it."""

import contextlib
import importlib.metadata
import platform
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from ...contract.errors import UserError

LIBRARIES = ("adaptive-lm", "torch", "numpy", "tokenizers", "safetensors")


def choose_device(wanted: str, local_rank: int | None = None) -> torch.device:
    """Choose the device: `auto` is CUDA if it works, else the CPU. Each rank of a machine takes one CUDA device.

    Raises:
        UserError: CUDA was requested, but does not work or has no such device.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"--device {wanted}: this torch ({torch.__version__}) finds no CUDA device; type --device cpu, or "
            "install a torch built for CUDA"
        )
    device = torch.device("cuda" if wanted == "auto" else wanted)
    if local_rank is not None:
        device = torch.device("cuda", local_rank)
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {wanted}: there are {torch.cuda.device_count()} CUDA devices, counted from cuda:0")
    return device


def has_bf16(device: torch.device) -> bool:
    """Return whether the processor multiplies bfloat16 in hardware; without, autocast would only slow it down."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine().lower() in ("arm64", "aarch64"):
        return (
            False  # torch runs it there, but not faster than fp32 on every chip; ask for it with trainer.precision=bf16
        )
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_precision(wanted: str, device: torch.device) -> str:
    """Choose the precision: `auto` is `bf16` if the processor has it, else `fp32`."""
    if wanted != "auto":
        return wanted
    return "bf16" if has_bf16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which forward passes run."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def versions(device: torch.device, precision: str, matmul: Mapping[str, str]) -> dict[str, Any]:
    """Collect the conditions of a run for versions.json: libraries, processor, threads, precision, the command."""
    libraries = {name.replace("-", "_"): importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **libraries,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "matmul": dict(matmul),
        "command": ["adaptive", *sys.argv[1:]],
    }


def processor_name() -> str:
    """Return the processor's name, else its architecture."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123  # not a file of ours
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
