"""The memory of a process."""

from pathlib import Path

import psutil


def memory_of(process: int | str = "self") -> dict[str, int]:
    """Return the sizes of a process in bytes, by the names of /proc/PID/status; nothing where that file is not there.

    VmRSS is what is resident now, VmHWM its peak, RssAnon the pages that belong to the process alone.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    return int(psutil.Process().memory_info().rss)


def forget_peak() -> int:
    """Measure the peak of this process anew from now on; return the bytes that are resident."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5", encoding="ascii")  # 5: the peak is what is resident now
    return resident()


def peak() -> int:
    """Return the largest resident size of this process so far, in bytes; without /proc the present one.

    `getrusage` would count the largest size of the process that started this one.
    """
    return memory_of().get("VmHWM") or resident()
