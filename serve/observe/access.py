"""The access line: one per request, when it has ended. It holds no text of the request and no key."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from .jobs import RequestRecord

QUIET_ROUTES = frozenset({"/health/live", "/health/ready", "/metrics", "/props"})
"""Asked for every few seconds by machines: logged at `debug` unless they fail."""


def access_fields(record: RequestRecord, scope: Mapping[str, Any], status: int) -> dict[str, Any]:
    """Return the fields of the line; None where there is nothing to say.

    With several jobs (`n`, several prompts) counts are sums, and times those of the slowest.
    """
    now, state, jobs = time.perf_counter(), scope.get("state", {}), record.jobs
    dense = sum(job.dense_flops for job in jobs)
    fields = {
        "request_id": state.get("request_id"),
        "method": scope["method"],
        "path": scope.get("path", ""),  # without the query, which may hold a key
        "status": status,
        "seconds": round(now - record.began, 6),
        "client": state.get("client"),
        "model": jobs[0].model if jobs else state.get("model"),
    }
    if state.get("disconnected"):
        fields["disconnected"] = True  # the client left before the end
    if jobs:
        fields |= {
            "prompt_tokens": sum(job.prompt_tokens for job in jobs),
            "cached_tokens": sum(job.cached_tokens for job in jobs),
            "new_tokens": sum(job.new_tokens for job in jobs),
            "drafted": sum(job.drafted for job in jobs),
            "accepted": sum(job.accepted for job in jobs),
            "queue_seconds": slowest(job.queue_seconds for job in jobs),
            "first_token_seconds": slowest(job.first_token_seconds for job in jobs),
            "finish": ",".join(sorted({job.reason or "cancelled" for job in jobs})),
            "dial": next((job.dial for job in jobs if job.dial is not None), None),
            "share": round(sum(job.executed_flops for job in jobs) / dense, 4) if dense else None,
        }
    return fields


def slowest(seconds: Iterable[float | None]) -> float | None:
    """Return the largest; None where there is none."""
    times = [each for each in seconds if each is not None]
    return round(max(times), 6) if times else None
