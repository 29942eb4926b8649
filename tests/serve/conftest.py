"""The tiny models served once for all tests that do not change the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.graphs.tiny_graph import write_embedder, write_manifest, write_model
from support.serving.schedulers import ScriptedScheduler
from support.serving.scripted import TEMPLATE as TOOL_TEMPLATE
from support.serving.scripted import Scripted
from support.serving.served import TEMPLATE, served


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model with a chat template; it is served as `demo`."""
    folder = write_model(tmp_path_factory.mktemp("served") / "demo" / "model")
    return write_manifest(folder, chat_template=TEMPLATE, curve=CURVE)


def point(compute: float, top_p: float, depth: float, leave: float) -> dict[str, Any]:
    """Return a point of a curve written by hand."""
    thresholds = {"router_top_p": [top_p] * 3, "depth_threshold": [0, depth, 0], "exit_threshold": [leave, 1, 1]}
    figures = {"executed_share": compute, "loss": 3 - compute, "bits_per_byte": 1.0, "experts_per_token": 2,
               "heads_per_token": 2, "layers_per_token": 2}  # fmt: skip
    return {"compute": compute, "thresholds": thresholds, **figures}


CURVE = {
    "text": "heldout.txt",
    "tokens": 8000,
    "machine": {"cpu": "this one", "threads": 1, "device": "cpu"},
    "points": [point(0.5, 0.2, 0.8, 0.4), point(1.0, 1.0, 0.0, 1.0)],
}


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model with hidden states; it is served as `demo`."""
    return write_embedder(tmp_path_factory.mktemp("embedder") / "demo" / "model", chat_template=TEMPLATE, curve=CURVE)


@pytest.fixture(scope="session")
def client(folder: Path) -> Iterator[TestClient]:
    """Serve the tiny model."""
    with served(folder) as client:
        yield client


@pytest.fixture(scope="session")
def tool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("tools") / "demo" / "model")
    generation = {"dialect": "huggingface", "sampling": {"temperature": 0.5, "top_k": 7}}
    return write_manifest(folder, chat_template=TOOL_TEMPLATE, generation=generation)


@pytest.fixture(scope="session")
def scripted(tool_folder: Path) -> Iterator[Scripted]:
    made: list[ScriptedScheduler] = []

    def wrap(inner: Any) -> Any:
        made.append(ScriptedScheduler(inner))
        return made[0]

    with served(tool_folder, wrap=wrap) as client:
        yield Scripted(client, made[0])


@pytest.fixture(scope="session")
def tool_client(tool_folder: Path) -> Iterator[TestClient]:
    with served(tool_folder) as client:
        yield client
