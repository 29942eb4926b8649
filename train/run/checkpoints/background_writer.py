"""Saving in the background: copies that training cannot change, and one thread that writes them."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class Staging:
    """Copies tensors to the CPU, always into the same memory, which is as large as a checkpoint.

    There is one set of copies at a time: the next copy overwrites the last.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return name -> copy on the CPU; `prefix` distinguishes tensors of the same name."""
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
    """Runs one job at a time in a thread.

    The process does not end before the job does, unless it is killed or a second signal ends it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "save")
        self._job: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._job is not None and not self._job.done()

    def start(self, job: Callable[[], None]) -> None:
        """Start a job after the one before is done; raise what that one raised."""
        self.wait()
        self._job = self._thread.submit(job)

    def check(self) -> None:
        """Raise what the job raised, once, if it has ended."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Wait until the job is done, and raise what it raised, once."""
        job, self._job = self._job, None
        if job is not None:
            job.result()
