"""The machine on which a figure was measured."""

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

from ..execution.session import Session, usable_cores


def describe(session: Session) -> dict[str, Any]:
    """Describe processor, cores, memory and versions, and what of them the session uses."""
    import psutil  # only measurements need it

    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": session.threads,
        "device": session.device.name,
        "target": session.target,
        "kernel": session.kernel,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
        "onnxruntime": session.onnxruntime_version,
        "load_average": [round(load, 2) for load in psutil.getloadavg()],  # load of other programs just before
    }


def cpu_name() -> str:
    """Return the name of the processor as its maker writes it, if the system knows it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    # Linux lets a program inherit the `ru_maxrss` of the process that started it; VmHWM begins anew with the program.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024  # kilobytes
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS
