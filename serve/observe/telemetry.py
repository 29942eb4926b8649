"""Metrics, logs and traces of one server, behind the `Observer` that the scheduler calls."""

import os
import time
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version

import structlog
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.format.manifest import Manifest
from .access import QUIET_ROUTES, access_fields
from .guard import guarded
from .jobs import CURRENT, JobRecord, RequestRecord
from .labels import OTHER, method_label, route_label, status_label
from .metrics import Metrics
from .middleware import App, ObserveMiddleware, Scope
from .observer import REJECTIONS, JobObserver, ModelState, Observer, Rejection
from .traces import Traces

log = structlog.get_logger("adaptive")


class Telemetry(Observer):
    """The observer of a server.

    Args:
        paths: Of the endpoints, for the labels of requests that were answered before they reached one.
        environ: Where the variables of OpenTelemetry are read; the environment by default.

    Raises:
        UserError: The variables ask for an exporter that we do not have.
        ModuleNotFoundError: They ask for traces, and the extra `[otel]` is not installed.
    """

    def __init__(self, paths: Collection[str] = (), environ: Mapping[str, str] | None = None) -> None:
        self.paths = frozenset(paths)
        release = version("adaptive-lm")
        self.metrics = Metrics(release)
        self.traces = Traces.from_environment(os.environ if environ is None else environ, release)

    def model(self, name: str, manifest: Manifest, state: Callable[[], ModelState]) -> None:
        """Announce a model, and begin its series at 0."""
        self.metrics.model(name, manifest, state)

    def job(self, model: str, prompt_tokens: int) -> JobObserver:
        """Begin to follow a job, as part of the HTTP request in progress if there is one."""
        metrics = self.metrics.models.get(model)
        job = JobRecord(model, prompt_tokens, metrics)
        if metrics is not None:
            metrics.running.add(job)
        record = CURRENT.get()
        if record is not None:
            record.jobs.append(job)
        return job

    @guarded
    def rejected(self, model: str, reason: Rejection) -> None:
        """Count a job that was not accepted, or whose deadline passed in the queue."""
        self.metrics.rejected.labels(self._model_label(model), reason if reason in REJECTIONS else OTHER).inc()

    @guarded
    def pass_done(self, model: str, *, seconds: float, decoding: int, reading: int) -> None:
        """Record one pass of the engine."""
        metrics = self.metrics.models[model]
        metrics.pass_seconds.observe(seconds)
        metrics.pass_sequences.observe(decoding)
        metrics.pass_rows.observe(decoding + reading)

    def request_began(self) -> RequestRecord:
        """Begin the record of an HTTP request."""
        self.metrics.in_progress.inc()
        return RequestRecord(time.perf_counter())

    @guarded
    def request_ended(self, record: RequestRecord, scope: Scope, status: int, error: BaseException | None) -> None:
        """Count a request, write its access line and export its spans."""
        metrics, route = self.metrics, route_label(scope, self.paths)
        metrics.in_progress.dec()
        name = record.jobs[0].model if record.jobs else scope.get("state", {}).get("model")
        metrics.requests.labels(route, method_label(scope), status_label(status), self._model_label(name)).inc()
        metrics.request_seconds.labels(route).observe(time.perf_counter() - record.began)
        fields = access_fields(record, scope, status)
        write = log.debug if route in QUIET_ROUTES and status < 400 else log.info
        if isinstance(error, Exception):
            log.error("request failed", exc_info=error, **fields)
        else:
            write("request", **fields)
        if self.traces is not None:
            self.traces.request(record, scope, route, status, error)

    def _model_label(self, name: str | None) -> str:
        """Return the name of an announced model, else "": a client may ask for any name."""
        return name if name is not None and name in self.metrics.models else ""

    def middleware(self, app: App) -> App:
        """Wrap the application, inside the request id and outside all else."""
        return ObserveMiddleware(app, self)

    def routes(self) -> list[Route]:
        """Return the endpoint `/metrics`. It needs a key where the server has keys: it shows who uses it how much."""
        return [Route("/metrics", self._show, methods=["GET"])]

    async def _show(self, request: Request) -> Response:
        # On the event loop, because the state of models is read there; thousands of series take milliseconds.
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self.metrics.registry), media_type=content_type)

    def close(self) -> None:
        """Export the spans that are left."""
        if self.traces is not None:
            self.traces.close()
