"""Servers as processes of their own, for the benchmark `serve`: ours, and the one of llama-cpp-python."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from serving.client import HOST, get

READY_SECONDS = 120.0
END_SECONDS = 30.0


class Server(NamedTuple):
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    ready_seconds: float
    """From its start to the first answer of 200 to the path that says that it is ready."""

    def memory(self) -> int:
        """Return the resident memory in bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def ours(model: Path, *options: str, threads: int | None = None) -> Iterator[Server]:
    """Run `adaptive serve` until the block ends."""
    more = () if threads is None else ("--threads", str(threads))
    command = [sys.executable, "-m", "adaptive_lm.serve", "serve", "--model", str(model), "--host", HOST,
               "--log-level", "warning", *more, *options]  # fmt: skip
    with _running(command, "/health/ready") as server:
        yield server


@contextmanager
def llama_cpp(file: Path, threads: int) -> Iterator[Server]:
    """Run the server of llama-cpp-python until the block ends."""
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(file), "--host", HOST, "--n_threads",
               str(threads), "--n_threads_batch", str(threads), "--n_ctx", "2048", "--interrupt_requests", "false",
               "--verbose", "false"]  # fmt: skip
    with _running(command, "/v1/models") as server:
        yield server


@contextmanager
def _running(command: Sequence[str], path: str) -> Iterator[Server]:
    port = _free_port()
    begin = time.perf_counter()
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               env=environment)  # fmt: skip
    try:
        while not asyncio.run(_answers(port, path)):
            if process.poll() is not None:
                assert process.stderr is not None
                raise RuntimeError(f"{' '.join(command)}:\n{process.stderr.read().decode()[-3000:]}")
            if time.perf_counter() - begin > READY_SECONDS:
                raise RuntimeError(f"not ready after {READY_SECONDS:.0f} s: {' '.join(command)}")
            time.sleep(0.005)
        yield Server(port, process, time.perf_counter() - begin)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


async def _answers(port: int, path: str) -> bool:
    try:
        status, _ = await get(port, path)
    except (OSError, IndexError, ValueError):
        return False
    return status == 200


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])
