"""What saving beside training needs: copies that training cannot change, and one thread that writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class Staging:
    """Copies tensors to the CPU, always into the same memory: a copy of all that a checkpoint holds, for a whole run.

    One set of copies at a time: taking the next overwrites the last.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """name -> copy on the CPU. `prefix` tells apart tensors of one name."""
        copies = {}
        for name, tensor in tensors.items():
            key = f"{prefix}{name}"
            buffer = self._buffers.get(key)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                self._buffers[key] = buffer
            copies[name] = buffer.copy_(tensor.detach())
        return copies


class Writer:
    """Runs one job at a time in a thread of its own. The process does not end before the job does, unless it is killed
    or told to end at once.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "save")
        self._job: Future[None] | None = None

    @property
    def busy(self) -> bool:
        return self._job is not None and not self._job.done()

    def start(self, job: Callable[[], None]) -> None:
        """Begins a job once the one before is done; raises what that one raised."""
        self.wait()
        self._job = self._thread.submit(job)

    def check(self) -> None:
        """Raises what the job raised, once, if it has ended."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Waits until the job is done, and raises what it raised, once."""
        job, self._job = self._job, None
        if job is not None:
            job.result()
