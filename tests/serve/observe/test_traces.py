"""Traces: spans of a request and its jobs, only where the variables of OpenTelemetry ask for them."""

import subprocess
import sys
import time
from typing import Any

import pytest
from support.cases import each

from adaptive_lm.contract.errors import UserError
from adaptive_lm.runtime.generation.request import Token
from adaptive_lm.serve.observe.jobs import CURRENT
from adaptive_lm.serve.observe.telemetry import Telemetry
from adaptive_lm.serve.observe.traces import Traces, wants_traces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_nothing_of_opentelemetry_is_imported_unless_it_is_asked_for() -> None:
    code = (
        "import sys; from adaptive_lm.serve.observe.telemetry import Telemetry; "
        "telemetry = Telemetry(environ={'OTEL_SERVICE_NAME': 'x'}); assert telemetry.traces is None; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@each(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, False),
    ],
)
def test_the_variables_of_opentelemetry_switch_traces_on(environ: dict[str, str], wanted: bool) -> None:
    assert wants_traces(environ) == wanted


def test_an_exporter_that_we_do_not_have_is_refused() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
    with pytest.raises(UserError, match="found OTEL_TRACES_EXPORTER=zipkin, expected otlp, console or none; type: "):
        Traces.from_environment({"OTEL_TRACES_EXPORTER": "zipkin"}, "1")


def traced(telemetry: Telemetry, tokens: list[Token], status: int, path: str = "/v1/chat/completions") -> Any:
    """Run a request with one job, and return its spans by name."""
    pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry.traces = Traces(provider.get_tracer("test"))
    record = telemetry.request_began()
    mark = CURRENT.set(record)
    job = telemetry.job("demo", 6)
    CURRENT.reset(mark)
    job.started()
    for token in tokens:
        job.token(token)
    job.ended("length", dial=0.5, cached_tokens=4, drafted=3, accepted=2)

    class Matched:
        path = "/v1/chat/completions"

    headers = [(b"traceparent", PARENT.encode()), (b"authorization", b"Bearer sk-secret")]
    scope = {"method": "POST", "path": path, "headers": headers, "state": {"request_id": "r-1"}, "route": Matched()}
    if path == "/health/live":
        scope["route"] = None
    telemetry.request_ended(record, scope, status, None)
    assert "sk-secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_has_spans_of_its_queue_prompt_and_text(telemetry: Telemetry, tokens: list[Token]) -> None:
    before = time.time_ns()
    spans = traced(telemetry, tokens, 200)
    assert set(spans) == {"chat demo", "queue", "prompt", "decode"}
    request = spans.pop("chat demo")
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1], "the trace of the client goes on"
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert request.kind.name == "SERVER"
    assert dict(request.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "adaptive",
        "gen_ai.request.model": "demo",
        "gen_ai.response.model": "demo",
        "gen_ai.usage.input_tokens": 6,
        "gen_ai.usage.output_tokens": len(tokens),
        "gen_ai.response.finish_reasons": ("length",),
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "adaptive.request.id": "r-1",
    }
    assert all(span.parent.span_id == request.context.span_id for span in spans.values())
    queue, prompt, decode = (spans[name] for name in ("queue", "prompt", "decode"))
    assert before - 1e6 <= request.start_time <= queue.start_time <= queue.end_time == prompt.start_time
    assert prompt.end_time == decode.start_time <= decode.end_time <= request.end_time <= time.time_ns()
    assert decode.attributes["adaptive.compute.dial"] == 0.5
    assert 0 < decode.attributes["adaptive.compute.share"] <= 1


def test_a_request_that_fails_has_the_status_error(telemetry: Telemetry, tokens: list[Token]) -> None:
    span = traced(telemetry, tokens[:0], 503)["chat demo"]
    assert span.status.status_code.name == "ERROR"
    assert span.attributes["error.type"] == "503"


def test_probes_have_no_spans(telemetry: Telemetry, tokens: list[Token]) -> None:
    assert traced(telemetry, tokens, 200, "/health/live") == {}
