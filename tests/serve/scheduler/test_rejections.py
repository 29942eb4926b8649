"""Why the scheduler refuses jobs, as metrics count it."""

from pathlib import Path

import pytest
from support.serving.scheduled import job, run, serving, whole
from support.serving.until import until

from adaptive_lm.runtime import load
from adaptive_lm.runtime.execution.memory.kv_cache import cache_bytes
from adaptive_lm.serve.errors import DeadlineError, QueueFullError, ServeError
from adaptive_lm.serve.observe.observer import REJECTIONS, Observer, Rejection
from adaptive_lm.serve.scheduler.local import LocalScheduler
from adaptive_lm.serve.scheduler.open import open_scheduler
from adaptive_lm.serve.settings import Settings

from .conftest import Gate


class Refusals(Observer):
    """Notes why jobs are refused."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, Rejection]] = []

    def rejected(self, model: str, reason: Rejection) -> None:
        self.noted.append((model, reason))

    def take(self) -> list[tuple[str, Rejection]]:
        """Return what was noted since the last call."""
        noted, self.noted = self.noted, []
        return noted


async def refused(scheduler: LocalScheduler, text: str = "hello", new: int = 8, model: str = "demo") -> None:
    with pytest.raises(ServeError):
        await scheduler.submit(model, job(text, new))


def test_every_reason_is_counted_where_it_applies(demo: Path, gate: Gate) -> None:
    """S30, and every other reason."""
    refusals, counted = Refusals(), []
    manifest = load(demo).manifest

    async def test() -> None:
        loading = open_scheduler(Settings(models=(str(demo),), threads=1, device="cpu"), refusals)
        await refused(loading)
        counted.extend(refusals.take())

        memory = cache_bytes(manifest.model, 64)
        async with serving(demo, observer=refusals, max_batch=1, max_queue=1, kv_memory=memory) as scheduler:
            await refused(scheduler, model="other")
            await refused(scheduler, new=manifest.model.context_length)
            await refused(scheduler, "x" * 60)
            streams = [await scheduler.submit("demo", job())]
            await until(lambda: gate.waiting)
            streams.append(await scheduler.submit("demo", job(timeout=0.1)))
            await refused(scheduler)
            with pytest.raises(QueueFullError):  # not counted
                await scheduler.submit("demo", job(submitted_again=True))
            _, end = await whole(streams[1])
            assert isinstance(end.error, DeadlineError)
            counted.extend(refusals.take())

            gate.error = SystemExit("of the engine")
            gate.let_all()
            await scheduler.failure()
            await refused(scheduler)
            scheduler.abort()
            await refused(scheduler)
            counted.extend(refusals.take())

    run(test())
    assert counted == [
        ("demo", "loading"), ("other", "unknown_model"), ("demo", "bad_request"), ("demo", "memory"),
        ("demo", "queue_full"), ("demo", "deadline"), ("demo", "failed"), ("demo", "draining"),
    ]  # fmt: skip
    assert {reason for _, reason in counted} == set(REJECTIONS), "a reason that the metrics have and nothing counts"


def test_a_job_that_had_a_slot_at_its_deadline_is_not_counted_as_refused(demo: Path, gate: Gate) -> None:
    """S30."""
    refusals = Refusals()

    async def test() -> None:
        async with serving(demo, observer=refusals, max_batch=1) as scheduler:
            stream = await scheduler.submit("demo", job(new=80, timeout=0.1))
            gate.let(3)
            tokens, end = await whole(stream)
            assert (len(tokens), type(end.error)) == (3, DeadlineError)
            gate.let_all()

    run(test())
    assert refusals.noted == []
