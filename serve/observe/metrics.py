"""The metrics of a server, in the format of Prometheus.

What happens per request or per token is counted as it happens; how busy a model is, is asked for when the metrics are
read. Each process has metrics of its own: one server is one process, and each replica is read by itself.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...runtime.format.manifest import Manifest
from .observer import ModelState
from .tally import Tally

if TYPE_CHECKING:
    from .jobs import JobRecord

REASONS = ("eos", "stop", "length", "embedded", "cancelled", "deadline", "error")
SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
TOKEN_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.032, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class ModelMetrics:
    """The series of one model, looked up once.

    Args:
        metrics: Where they are registered.
        name: The model.
        manifest: Its manifest.
        state: Returns how busy it is.
    """

    def __init__(self, metrics: "Metrics", name: str, manifest: Manifest, state: Callable[[], ModelState]) -> None:
        self.name, self.state, self.tally = name, state, Tally(manifest)
        self.running: weakref.WeakSet[JobRecord] = weakref.WeakSet()
        self.prompt_tokens = metrics.prompt_tokens.labels(name)
        self.cached_tokens = metrics.cached_tokens.labels(name)
        self.new_tokens = metrics.new_tokens.labels(name)
        self.drafted = metrics.drafted.labels(name)
        self.accepted = metrics.accepted.labels(name)
        self.first_token = metrics.first_token.labels(name)
        self.between_tokens = metrics.between_tokens.labels(name)
        self.queue_seconds = metrics.queue_seconds.labels(name)
        self.compute = metrics.compute.labels(name)
        self.pass_seconds = metrics.pass_seconds.labels(name)
        self.pass_sequences = metrics.pass_sequences.labels(name)
        self.pass_rows = metrics.pass_rows.labels(name)
        self._ended = {reason: metrics.jobs.labels(name, reason) for reason in REASONS}

    def job_ended(self, job: "JobRecord") -> None:
        """Count a job that ended."""
        self._ended.get(job.reason or "error", self._ended["error"]).inc()
        self.running.discard(job)
        if job.started_at is None:  # its prompt was never read
            return
        self.prompt_tokens.inc(job.prompt_tokens)
        self.cached_tokens.inc(job.cached_tokens)
        self.drafted.inc(job.drafted)
        self.accepted.inc(job.accepted)
        if job.dial is not None:
            self.compute.observe(job.dial)


class Metrics(Collector):
    """All metrics of one process, in a registry of their own.

    Args:
        version: Of this package.
    """

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self.models: dict[str, ModelMetrics] = {}
        model = ["model"]

        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(f"adaptive_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"adaptive_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter(
            "http_requests", "HTTP requests that were answered or abandoned.", ["route", "method", "status", "model"]
        )
        self.request_seconds = histogram(
            "http_request_duration_seconds",
            "Time from the head of a request to the end of its answer.",
            ["route"],
            SECONDS,
        )
        self.in_progress = Gauge("adaptive_http_requests_in_progress", "HTTP requests in progress.", registry=registry)
        self.rejected = counter(
            "jobs_rejected", "Jobs that were not accepted, or whose deadline passed in the queue.", ["model", "reason"]
        )
        self.jobs = counter("jobs", "Jobs that ended, by the reason.", ["model", "reason"])
        self.prompt_tokens = counter("prompt_tokens", "Tokens of the prompts of jobs that had a slot.", model)
        self.cached_tokens = counter("cached_prompt_tokens", "Tokens of prompts that were in memory already.", model)
        self.new_tokens = counter("new_tokens", "Tokens generated.", model)
        self.drafted = counter("drafted_tokens", "Tokens that were guessed ahead.", model)
        self.accepted = counter("accepted_tokens", "Tokens that were guessed ahead and were right.", model)
        self.first_token = histogram(
            "time_to_first_token_seconds", "Time from the submission of a job to its first token.", model, SECONDS
        )
        self.between_tokens = histogram(
            "time_between_tokens_seconds",
            "Time between two tokens of a job; tokens that one pass gave arrive together.",
            model,
            TOKEN_SECONDS,
        )
        self.queue_seconds = histogram("queue_seconds", "Time that a job waited for a slot.", model, SECONDS)
        self.compute = histogram("job_compute", "The dial in force at the end of a job.", model, SHARES)
        self.pass_seconds = histogram("pass_seconds", "Wall time of one pass of the engine.", model, TOKEN_SECONDS)
        self.pass_sequences = histogram("pass_sequences", "Sequences that decoded in one pass.", model, SIZES)
        self.pass_rows = histogram(
            "pass_rows", "Rows of one pass: sequences that decoded, and tokens of prompts.", model, SIZES
        )
        Info("adaptive_build", "Version of the server.", registry=registry).info({"version": version})
        ProcessCollector(registry=registry)  # process_resident_memory_bytes and others; Linux only
        registry.register(self)

    def model(self, name: str, manifest: Manifest, state: Callable[[], ModelState]) -> None:
        """Begin the series of a model at 0."""
        self.models[name] = ModelMetrics(self, name, manifest, state)

    def collect(self) -> Iterator[Metric]:
        """Yield what is asked for when the metrics are read."""
        for model in self.models.values():
            for job in list(model.running):
                job.flush()
        yield from self._gauges()
        yield from self._compute()

    def _gauges(self) -> Iterator[Metric]:
        states = {name: model.state() for name, model in self.models.items()}
        for name, text, attribute in (
            ("jobs_running", "Jobs in a slot.", "running"),
            ("jobs_waiting", "Jobs that wait for a slot.", "waiting"),
            ("slots", "Slots of the batch.", "slots"),
            ("kv_bytes", "Bytes of keys, values and states in use.", "kv_bytes"),
            ("kv_limit_bytes", "Bytes of keys, values and states that may be used.", "kv_limit"),
            ("auto_compute", 'The dial that compute "auto" gives now.', "dial"),
        ):
            gauge = GaugeMetricFamily(f"adaptive_{name}", text, labels=["model"])
            for model, state in states.items():
                value = getattr(state, attribute)
                if value is not None:
                    gauge.add_metric([model], value)
            yield gauge

    def _compute(self) -> Iterator[Metric]:
        experts = CounterMetricFamily(
            "adaptive_expert_tokens", "New tokens that used an expert.", labels=["model", "layer", "expert"]
        )
        layers = CounterMetricFamily("adaptive_layer_tokens", "New tokens that ran a layer.", labels=["model", "layer"])
        exits = CounterMetricFamily(
            "adaptive_exit_tokens",
            'New tokens that left after a layer; "none" ran to the end.',
            labels=["model", "layer"],
        )
        executed = CounterMetricFamily("adaptive_executed_flops", "FLOPs that ran for new tokens.", labels=["model"])
        dense = CounterMetricFamily(
            "adaptive_dense_flops", "FLOPs of the same tokens if nothing had been skipped.", labels=["model"]
        )
        for name, model in self.models.items():
            for layer, expert, count in model.tally.experts():
                experts.add_metric([name, str(layer), str(expert)], count)
            for layer, count in model.tally.layers():
                layers.add_metric([name, str(layer)], count)
            for place, count in model.tally.exits():
                exits.add_metric([name, place], count)
            for family, flops in zip((executed, dense), model.tally.flops, strict=True):
                family.add_metric([name], flops)
        yield from (experts, layers, exits, executed, dense)
