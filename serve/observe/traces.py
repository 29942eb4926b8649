"""Traces by OpenTelemetry (extra `[otel]`): a span for each request, with the queue, prompt and text of its jobs.

Spans are made when the request has ended, from the times that its record holds, so that nothing is added to a token.
OpenTelemetry is imported only where its own variables (`OTEL_...`) ask for traces.
Attributes follow its semantic conventions for HTTP and generative AI; ours begin with `adaptive.`.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...contract.errors import UserError
from .jobs import JobRecord, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer as OtelTracer

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""Route -> `gen_ai.operation.name`; other routes are not traced."""
SWITCHES = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def wants_traces(environ: Mapping[str, str]) -> bool:
    """Whether the variables of OpenTelemetry ask for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environ.get(name) for name in SWITCHES)


class Traces:
    """Exports the spans of requests.

    Args:
        tracer: Makes the spans.
        shutdown: Exports what is left.
    """

    def __init__(self, tracer: "OtelTracer", shutdown: Any = None) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace, self._tracer, self._shutdown = trace, tracer, shutdown
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], version: str) -> "Traces | None":
        """Set OpenTelemetry up as its variables say; None where they ask for nothing.

        Raises:
            UserError: They ask for an exporter that we do not have.
            ModuleNotFoundError: The extra `[otel]` is not installed.
        """
        if not wants_traces(environ):
            return None
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

        exporter: SpanExporter
        kind = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
        if kind == "console":
            exporter = ConsoleSpanExporter()
        elif kind == "otlp":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
        else:
            raise UserError(
                f"found OTEL_TRACES_EXPORTER={kind}, expected otlp, console or none; "
                "type: export OTEL_TRACES_EXPORTER=otlp"
            )
        resource = Resource.create({SERVICE_VERSION: version})
        if not environ.get("OTEL_SERVICE_NAME") and "service.name" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
            resource = resource.merge(Resource({SERVICE_NAME: "adaptive"}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider.get_tracer("adaptive_lm", version), provider.shutdown)

    def request(
        self, record: RequestRecord, scope: Mapping[str, Any], route: str, status: int, error: BaseException | None
    ) -> None:
        """Export the spans of a request that has ended."""
        operation = OPERATIONS.get(route)
        if operation is None:
            return
        clock = _Clock()
        jobs, state = record.jobs, scope.get("state", {})
        model = jobs[0].model if jobs else state.get("model")
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "adaptive",
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
        }
        if model:
            attributes |= {"gen_ai.request.model": model, "gen_ai.response.model": model}
        if state.get("request_id"):
            attributes["adaptive.request.id"] = state["request_id"]
        if jobs:
            attributes |= {
                "gen_ai.usage.input_tokens": sum(job.prompt_tokens for job in jobs),
                "gen_ai.usage.output_tokens": sum(job.new_tokens for job in jobs),
                "gen_ai.response.finish_reasons": [job.reason or "cancelled" for job in jobs],
            }
        if status >= 500:
            attributes["error.type"] = str(status) if error is None else type(error).__qualname__
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        span = self._tracer.start_span(
            f"{operation} {model}" if model else operation,
            context=self._propagator.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=clock.at(record.began),
        )
        if status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        inside = self._trace.set_span_in_context(span)
        for job in jobs:
            self._job(job, inside, clock)
        span.end(end_time=clock.now)

    def _job(self, job: JobRecord, inside: Any, clock: "_Clock") -> None:
        ended = job.ended_at
        phases: list[tuple[str, float | None, float | None, dict[str, Any]]] = [
            ("queue", job.submitted_at, job.started_at or ended, {}),
            (
                "prompt",
                job.started_at,
                job.first_token_at or ended,
                {"gen_ai.usage.input_tokens": job.prompt_tokens, "adaptive.cached_tokens": job.cached_tokens},
            ),
            ("decode", job.first_token_at, ended, _decode_attributes(job)),
        ]
        for name, begin, end, attributes in phases:
            if begin is not None:
                span = self._tracer.start_span(name, context=inside, attributes=attributes, start_time=clock.at(begin))
                span.end(end_time=clock.now if end is None else clock.at(end))

    def close(self) -> None:
        """Export what is left."""
        if self._shutdown is not None:
            self._shutdown()


def _decode_attributes(job: JobRecord) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.usage.output_tokens": job.new_tokens,
        "adaptive.drafted_tokens": job.drafted,
        "adaptive.accepted_tokens": job.accepted,
    }
    if job.dial is not None:
        attributes["adaptive.compute.dial"] = job.dial
    if job.share is not None:
        attributes["adaptive.compute.share"] = round(job.share, 4)
    return attributes


class _Clock:
    """Converts seconds of `time.perf_counter` to the nanoseconds since 1970 that spans have."""

    def __init__(self) -> None:
        self.now, self._counter = time.time_ns(), time.perf_counter()

    def at(self, counter: float) -> int:
        return self.now - int((self._counter - counter) * 1e9)
