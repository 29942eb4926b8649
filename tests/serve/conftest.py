"""The tiny models served once for all tests that do not change the server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from support.served import TEMPLATE, served
from support.tiny_graph import write_manifest, write_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model with a chat template; it is served as `demo`."""
    folder = write_model(tmp_path_factory.mktemp("served") / "demo" / "model")
    return write_manifest(folder, chat_template=TEMPLATE)


@pytest.fixture(scope="session")
def client(folder: Path) -> Iterator[TestClient]:
    """Serve the tiny model."""
    with served(folder) as client:
        yield client
