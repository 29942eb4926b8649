"""A tiny model and its tokens, and an application that reports to a `Telemetry`."""

from collections.abc import Iterator

import pytest
from support.graphs.tiny_graph import write_model

from adaptive_lm.runtime import Engine, Params, load
from adaptive_lm.runtime.generation.request import Token
from adaptive_lm.serve.observe.observer import ModelState
from adaptive_lm.serve.observe.telemetry import Telemetry

STATE = ModelState(running=2, waiting=3, slots=8, kv_bytes=4096, kv_limit=65536, dial=0.75)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(write_model(tmp_path_factory.mktemp("tiny") / "model"), device="cpu", threads=1)


@pytest.fixture(scope="session")
def tokens(engine: Engine) -> list[Token]:
    params = Params(temperature=0.8, seed=3, max_new_tokens=12)
    return list(engine.generate("How do", params))


@pytest.fixture
def telemetry(engine: Engine) -> Iterator[Telemetry]:
    telemetry = Telemetry(environ={})
    telemetry.model("demo", engine.manifest, lambda: STATE)
    yield telemetry
    telemetry.close()
