"""The application with its real scheduler reports what it did; `/metrics` needs a key where there are keys (S34)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from support.graphs.tiny_graph import write_model
from support.serving.lifespan import lifespan_of

from adaptive_lm.serve.application.build import build
from adaptive_lm.serve.application.table import ENDPOINTS
from adaptive_lm.serve.observe.telemetry import Telemetry
from adaptive_lm.serve.scheduler.open import open_scheduler
from adaptive_lm.serve.settings import Settings

KEY = "k" * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("served") / "demo" / "model")


@contextmanager
def observed(folder: Path, **settings: Any) -> Iterator[TestClient]:
    options = Settings(models=(str(folder),), device="cpu", threads=1, **settings)
    telemetry = Telemetry([one.path for one in ENDPOINTS], environ={})
    scheduler = open_scheduler(options, telemetry)

    app = build(
        options,
        scheduler,
        routes=telemetry.routes(),
        middleware=[telemetry.middleware],
        lifespan=lifespan_of(scheduler),
    )
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def read(client: TestClient, **headers: str) -> dict[str, float]:
    """Sum each series of the metrics over its labels but the model."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics", headers=headers).text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0) + sample.value
    return totals


@pytest.mark.parametrize("stream", [False, True])
def test_the_metrics_hold_what_was_generated(folder: Path, stream: bool) -> None:
    body = {"prompt": "How do", "max_tokens": 12, "seed": 3, "stream": stream, "logit_bias": {"256": -100}}
    with observed(folder) as client:
        before = read(client)
        assert client.post("/v1/completions", json=body).status_code == 200
        after = read(client)
        assert client.post("/v1/completions", json={"prompt": "How do", "model": "no-such-model"}).status_code == 404
        refused = read(client)
    rose = {name: after[name] - before[name] for name in after if name in before and after[name] != before[name]}
    assert rose["adaptive_new_tokens_total"] == 12
    assert rose["adaptive_prompt_tokens_total"] == 6
    assert rose["adaptive_jobs_total"] == 1
    assert rose["adaptive_time_to_first_token_seconds_count"] == 1
    assert rose["adaptive_time_between_tokens_seconds_count"] == 11
    assert rose["adaptive_exit_tokens_total"] == 12
    assert 0 < rose["adaptive_executed_flops_total"] <= rose["adaptive_dense_flops_total"]
    assert rose["adaptive_pass_seconds_count"] >= 2
    assert after["adaptive_slots"] == 8
    assert after["adaptive_kv_limit_bytes"] > 0
    assert refused["adaptive_http_requests_total"] > after["adaptive_http_requests_total"]


def test_metrics_need_a_key_where_there_are_keys(folder: Path) -> None:
    with observed(folder, api_keys=(("alice", KEY),)) as client:
        assert client.get("/metrics").status_code == 401
        totals = read(client, authorization=f"Bearer {KEY}")
        assert totals["adaptive_http_requests_total"] == 1
        assert KEY not in client.get("/metrics", headers={"authorization": f"Bearer {KEY}"}).text
