"""Metrics: they parse, only rise, have few labels whatever clients send, and cost microseconds (S42)."""

import asyncio
import time
from collections.abc import Mapping

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from adaptive_lm.runtime.generation.request import Token
from adaptive_lm.serve.observe import guard
from adaptive_lm.serve.observe.jobs import FLUSH_EVERY, JobRecord
from adaptive_lm.serve.observe.observer import JobObserver, Observer
from adaptive_lm.serve.observe.telemetry import Telemetry

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


async def answer(request: Request) -> PlainTextResponse:
    if request.path_params.get("model") == "broken":
        raise RuntimeError("a fault of ours")
    return PlainTextResponse("yes")


def application(telemetry: Telemetry) -> Starlette:
    app = Starlette(routes=[Route("/v1/models/{model}", answer, methods=["GET"]), *telemetry.routes()])
    app.add_middleware(telemetry.middleware)  # type: ignore[arg-type]
    return app


def send(telemetry: Telemetry, *requests: tuple[str, str]) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application(telemetry), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.request(method, path) for method, path in requests]

    return asyncio.run(run())


def samples(telemetry: Telemetry) -> Samples:
    """Read the metrics as Prometheus does."""
    (response,) = send(telemetry, ("GET", "/metrics"))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    values = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in values, "a series has two values"
            values[key] = sample.value
    return values


def value(read: Samples, name: str, **labels: str) -> float:
    return read[f"adaptive_{name}", tuple(sorted(labels.items()))]


def run_job(telemetry: Telemetry, tokens: list[Token], reason: str = "length") -> JobRecord:
    job = telemetry.job("demo", 6)
    assert isinstance(job, JobRecord)
    job.started()
    for token in tokens:
        job.token(token)
    job.ended(reason, dial=0.5, cached_tokens=4, drafted=3, accepted=2)
    return job


def test_a_job_is_counted_with_its_tokens_and_times(telemetry: Telemetry, tokens: list[Token]) -> None:
    job = run_job(telemetry, tokens)
    read = samples(telemetry)
    expected = {
        "prompt_tokens_total": 6,
        "cached_prompt_tokens_total": 4,
        "new_tokens_total": len(tokens),
        "drafted_tokens_total": 3,
        "accepted_tokens_total": 2,
        "time_to_first_token_seconds_count": 1,
        "time_between_tokens_seconds_count": len(tokens) - 1,
        "queue_seconds_count": 1,
        "job_compute_sum": 0.5,
    }
    assert {name: value(read, name, model="demo") for name in expected} == expected
    assert value(read, "jobs_total", model="demo", reason="length") == 1
    assert value(read, "jobs_total", model="demo", reason="eos") == 0
    assert job.first_token_seconds is not None
    assert value(read, "time_to_first_token_seconds_sum", model="demo") == pytest.approx(job.first_token_seconds)


def test_the_compute_counted_is_that_of_the_tokens(telemetry: Telemetry, tokens: list[Token]) -> None:
    run_job(telemetry, tokens)
    read = samples(telemetry)
    usages = [token.usage for token in tokens]
    for layer in range(3):
        ran = sum(layer in usage.layers_run for usage in usages)
        assert value(read, "layer_tokens_total", model="demo", layer=str(layer)) == ran
        for expert in range(4):
            used = sum(expert in usage.experts[layer] for usage in usages)
            labels = {"model": "demo", "layer": str(layer), "expert": str(expert)}
            assert value(read, "expert_tokens_total", **labels) == used
    stayed = sum(usage.exit_layer is None for usage in usages)
    assert value(read, "exit_tokens_total", model="demo", layer="none") == stayed
    assert value(read, "exit_tokens_total", model="demo", layer="0") == len(usages) - stayed
    assert value(read, "executed_flops_total", model="demo") == sum(usage.executed_flops for usage in usages)
    assert value(read, "dense_flops_total", model="demo") == sum(usage.dense_flops for usage in usages)


def test_tokens_of_a_job_that_still_runs_are_in_the_metrics(telemetry: Telemetry, tokens: list[Token]) -> None:
    job = telemetry.job("demo", 6)
    job.started()
    job.token(tokens[0])
    assert value(samples(telemetry), "dense_flops_total", model="demo") == tokens[0].usage.dense_flops


def test_how_busy_a_model_is_is_asked_for_when_the_metrics_are_read(telemetry: Telemetry) -> None:
    read = samples(telemetry)
    names = ("jobs_running", "jobs_waiting", "slots", "kv_bytes", "kv_limit_bytes", "auto_compute")
    assert [value(read, name, model="demo") for name in names] == [2, 3, 8, 4096, 65536, 0.75]
    assert read["process_resident_memory_bytes", ()] > 1e6


def test_a_pass_is_counted_with_its_batch_and_rows(telemetry: Telemetry) -> None:
    telemetry.pass_done("demo", seconds=0.003, decoding=5, reading=32)
    read = samples(telemetry)
    assert value(read, "pass_sequences_sum", model="demo") == 5
    assert value(read, "pass_rows_sum", model="demo") == 37
    assert value(read, "pass_seconds_bucket", model="demo", le="0.004") == 1
    assert value(read, "pass_seconds_bucket", model="demo", le="0.002") == 0


def test_counters_only_rise(telemetry: Telemetry, tokens: list[Token]) -> None:
    before = samples(telemetry)
    for reason in ("eos", "cancelled", "error", "no such reason"):
        run_job(telemetry, tokens, reason)
        telemetry.pass_done("demo", seconds=0.001, decoding=1, reading=0)
        telemetry.rejected("demo", "queue_full")
        send(telemetry, ("GET", "/v1/models/demo"))
        after = samples(telemetry)
        assert set(before) <= set(after), "a series is gone"
        rising = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
        assert len(rising) > 100
        assert all(after[key] >= before[key] for key in rising)
        before = after
    assert value(before, "jobs_total", model="demo", reason="error") == 2


def test_unknown_addresses_methods_and_models_make_no_labels(telemetry: Telemetry) -> None:
    send(telemetry, ("GET", "/v1/models/demo"), ("GET", "/nothing"), ("BREW", "/v1/models/demo"), ("GET", "/metrics"))
    before = set(samples(telemetry))
    requests = [("GET", f"/nothing/{number}") for number in range(50)]
    requests += [("GET", f"/v1/models/{number}") for number in range(50)]
    requests += [(f"BREW{number}", "/v1/models/demo") for number in range(50)]
    assert {response.status_code for response in send(telemetry, *requests)} == {200, 404, 405}
    for number in range(50):
        telemetry.job(f"model-{number}", 3).ended("cancelled")
        telemetry.rejected(f"model-{number}", "unknown_model")
    telemetry.rejected("demo", "a new reason")  # type: ignore[arg-type]
    telemetry.rejected("demo", "another")  # type: ignore[arg-type]
    read = samples(telemetry)
    added = {key for key in set(read) - before if key[0].endswith("_total")}
    assert {dict(labels)["reason"] for _, labels in added} == {"unknown_model", "other"}
    at = {"route": "/v1/models/{model}", "model": ""}
    assert value(read, "http_requests_total", method="GET", status="200", **at) == 51
    assert value(read, "http_requests_total", method="other", status="405", **at) == 51
    assert value(read, "http_requests_total", method="GET", status="404", route="other", model="") == 51


def test_a_request_that_fails_is_counted_and_none_stays_in_progress(telemetry: Telemetry) -> None:
    (response,) = send(telemetry, ("GET", "/v1/models/broken"))
    assert response.status_code == 500
    read = samples(telemetry)
    assert value(read, "http_requests_total", route="/v1/models/{model}", method="GET", status="500", model="") == 1
    assert value(read, "http_requests_in_progress") == 1, "the one that reads the metrics"


def test_a_fault_of_observing_is_logged_once_and_never_raised(
    telemetry: Telemetry, tokens: list[Token], monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[str] = []
    monkeypatch.setattr(guard.log, "exception", lambda event, **fields: reports.append(fields["method"]))
    telemetry.pass_done("no such model", seconds=1, decoding=1, reading=0)
    telemetry.pass_done("no such model", seconds=1, decoding=1, reading=0)
    job = telemetry.job("demo", 6)
    job.started()
    job.token(None)  # type: ignore[arg-type]
    job.ended("eos")
    assert sorted(reports) == ["JobRecord.ended", "Telemetry.pass_done"]


def test_the_end_of_a_job_counts_once(telemetry: Telemetry, tokens: list[Token]) -> None:
    job = run_job(telemetry, tokens)
    job.ended("cancelled")
    assert job.reason == "length"
    assert value(samples(telemetry), "jobs_total", model="demo", reason="cancelled") == 0


def test_the_base_classes_do_nothing() -> None:
    observer = Observer()
    job = observer.job("demo", 3)
    assert type(job) is JobObserver
    job.started()
    job.ended("eos")
    observer.rejected("demo", "memory")
    observer.pass_done("demo", seconds=1, decoding=1, reading=1)


def test_a_token_costs_microseconds(telemetry: Telemetry, tokens: list[Token]) -> None:
    """Measured at 4 to 8 us; the bound is wide because other programs share the cores of a test."""
    times = []
    for _ in range(20):
        job = telemetry.job("demo", 6)
        job.started()
        began = time.perf_counter()
        for _ in range(FLUSH_EVERY):
            job.token(tokens[1])
        times.append((time.perf_counter() - began) / FLUSH_EVERY)
        job.ended("eos")
    assert min(times) < 50e-6
    read = samples(telemetry)
    left = [value(read, "exit_tokens_total", model="demo", layer=layer) for layer in ("0", "none")]
    assert sum(left) == 20 * FLUSH_EVERY, "tokens that are counted together are all counted"


def test_a_request_that_was_not_routed_is_counted_by_its_path_if_that_is_an_endpoint(telemetry: Telemetry) -> None:
    scope = {"method": "POST", "path": "/v1/completions", "state": {}}
    telemetry.paths = frozenset({"/v1/completions"})
    for path in ("/v1/completions", "/v1/nothing"):
        telemetry.request_ended(telemetry.request_began(), scope | {"path": path}, 401, None)
    read = samples(telemetry)
    for route in ("/v1/completions", "other"):
        assert value(read, "http_requests_total", route=route, method="POST", status="401", model="") == 1
