"""A server as a process of its own on loopback."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.graphs.tiny_graph import write_model

SECONDS = 20.0
"""Bound of everything that a test waits for."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run `demo`."""
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "runs" / "demo" / "model")
    return folder


class Process:
    """`adaptive serve` on a free port, ready.

    Args:
        folder: Where it runs.
        options: Its options.
        before: Python code that it runs first, to slow or break what a test needs slow or broken.
    """

    def __init__(self, folder: Path, *options: str, before: str = "") -> None:
        code = f"{before}\nfrom adaptive_lm.serve.cli import main\nmain()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "--port", "0", "--threads", "1", *options],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        match = re.search(r"http://[0-9.:]+", self.line)
        self.url = match[0] if match else ""

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=SECONDS)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = SECONDS) -> tuple[int, str]:
        """Wait for the end; return the exit code and what it wrote on stderr."""
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(*options: str, before: str = "") -> Process:
        processes.append(Process(folder, *options, before=before))
        return processes[-1]

    yield start
    for one in processes:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
