"""The scheduler on tiny models: who runs, who waits, who is refused, and how each ends."""

import asyncio
import gc
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.serving.scheduled import ids, job, run, serving, whole
from support.serving.until import BOUND, until

from adaptive_lm.runtime import Engine, Params, UserError, load
from adaptive_lm.runtime.execution.memory.kv_cache import cache_bytes
from adaptive_lm.serve.errors import (
    BadRequestError,
    DeadlineError,
    NotFoundError,
    QueueFullError,
    ServeError,
    UnavailableError,
)
from adaptive_lm.serve.scheduler.job import AutoCompute, EndEvent, Job, PromptEvent, Stream
from adaptive_lm.serve.scheduler.open import open_scheduler
from adaptive_lm.serve.settings import Settings

from .conftest import Gate


def alone(engine: Engine, text: str, new: int = 8, **dial: Any) -> list[int]:
    return [
        token.id for token in engine.generate(list(text.encode()), Params(temperature=0, max_new_tokens=new, **dial))
    ]


def test_jobs_of_several_models_end_with_the_text_that_the_engine_gives_alone(demo: Path, dialled: Path) -> None:
    """S29 in its short form: each beside seven others."""
    engines = {"demo": load(demo, device="cpu"), "dialled": load(dialled, device="cpu")}

    async def test() -> None:
        async with serving(demo, dialled) as scheduler:
            texts = [f"{word} of the {number}" for number in range(4) for word in ("moon", "river")]
            for model, engine in engines.items():
                streams = [await scheduler.submit(model, job(text, 20)) for text in texts]
                for text, stream in zip(texts, streams, strict=True):
                    tokens, end = await whole(stream)
                    assert tokens == alone(engine, text, 20)
                    assert (end.reason, end.prompt_tokens, end.error) == ("length", len(text), None)

    run(test())


def test_models_are_named_as_their_run_and_listed_in_the_order_given(demo: Path, dialled: Path) -> None:
    scheduler = open_scheduler(Settings(models=(str(dialled), str(demo.parent))))
    assert [info.name for info in scheduler.models()] == ["dialled", "demo"]
    assert [info.dials for info in scheduler.models()] == [(0.3, 0.5, 0.7, 1.0), ()]
    assert scheduler.status == "loading"


def test_two_models_of_one_name_are_refused(demo: Path) -> None:
    with pytest.raises(UserError, match="found two models named 'demo', expected a name for each"):
        open_scheduler(Settings(models=(str(demo), str(demo))))


def test_a_missing_model_is_reported_before_anything_is_loaded(tmp_path: Path) -> None:
    """S44."""
    with pytest.raises(UserError, match="no exported model at"):
        open_scheduler(Settings(models=(str(tmp_path / "none"),)))


def test_a_damaged_model_fails_in_the_background_and_every_request_is_told(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    (folder / "model.onnx.data").write_bytes(b"\0" * (folder / "model.onnx.data").stat().st_size)

    async def test() -> None:
        scheduler = open_scheduler(Settings(models=(str(folder),)))
        await scheduler.start()
        error = await scheduler.failure()
        assert isinstance(error, UserError)
        assert scheduler.status == "failed"
        with pytest.raises(UnavailableError, match="stopped"):
            await scheduler.submit(scheduler.models()[0].name, job())
        await scheduler.close()

    run(test())


def test_while_a_model_loads_a_request_is_told_to_come_back(demo: Path) -> None:
    async def test() -> None:
        scheduler = open_scheduler(Settings(models=(str(demo),)))
        await scheduler.start()
        with pytest.raises(UnavailableError, match="is being loaded") as caught:
            await scheduler.submit("demo", job())
        assert caught.value.headers == {"Retry-After": "1"}
        await scheduler.ready()
        await whole(await scheduler.submit("demo", job()))
        await scheduler.close()

    run(test())


def test_an_unknown_model_is_not_found(demo: Path) -> None:
    """S48."""

    async def test() -> None:
        async with serving(demo) as scheduler:
            with pytest.raises(NotFoundError, match="found model 'other', this server has demo") as caught:
                await scheduler.submit("other", job())
            assert caught.value.code == "model_not_found"

    run(test())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (job("x" * 90, 20), "found 90 prompt tokens and 20 new ones, 110 together; the context of this model is 96"),
        (job("x" * 200), "found 200 prompt tokens and 8 new ones"),
        (job(""), "the prompt is empty"),
        (job(params=Params(compute=0.5)), "not calibrated"),
        (job(auto=AutoCompute(0.3)), 'found compute "auto", but the model demo is not calibrated'),
        (Job(prompt=(5000,), params=Params(), client="a"), "found token 5000 in the prompt, this model has 0 to 256"),
    ],
)
def test_a_job_that_the_model_cannot_do_is_refused(demo: Path, changed: Job, message: str) -> None:
    """S5, S6, S12."""

    async def test() -> None:
        async with serving(demo) as scheduler:
            with pytest.raises(BadRequestError, match=message):
                await scheduler.submit("demo", changed)

    run(test())


def test_the_queue_is_bounded_and_says_when_to_come_back(demo: Path, gate: Gate) -> None:
    """S27."""

    async def test() -> None:
        async with serving(demo, max_batch=2, max_queue=3) as scheduler:
            streams = [await scheduler.submit("demo", job(client=str(number))) for number in range(5)]
            with pytest.raises(QueueFullError, match="3 requests wait, as many as the queue takes") as caught:
                await scheduler.submit("demo", job(client="late"))
            assert int(caught.value.headers["Retry-After"]) >= 1
            assert (caught.value.status, caught.value.code) == (429, "queue_full")
            await until(lambda: scheduler.load().running == 2)
            assert scheduler.load().waiting == 3
            gate.let_all()
            for stream in streams:
                assert len((await whole(stream))[0]) == 8

    run(test())


def test_one_client_leaves_places_in_the_queue_to_others(demo: Path, gate: Gate) -> None:
    async def test() -> None:
        async with serving(demo, max_batch=1, max_queue=10) as scheduler:
            await scheduler.submit("demo", job(client="greedy"))
            await until(lambda: gate.waiting)
            for _ in range(8):
                await scheduler.submit("demo", job(client="greedy"))
            with pytest.raises(QueueFullError, match="8 requests of this client wait"):
                await scheduler.submit("demo", job(client="greedy"))
            other = await scheduler.submit("demo", job(client="modest"))
            gate.let_all()
            assert len((await whole(other))[0]) == 8

    run(test())


def test_a_client_with_fifty_requests_does_not_starve_one_with_a_single(demo: Path, gate: Gate) -> None:
    async def test() -> None:
        async with serving(demo, max_batch=1, max_queue=100) as scheduler:
            order: list[str] = []

            async def follow(stream: Stream, client: str) -> None:
                await whole(stream)
                order.append(client)

            tasks = [asyncio.create_task(follow(await scheduler.submit("demo", job()), "many")) for _ in range(50)]
            tasks.append(asyncio.create_task(follow(await scheduler.submit("demo", job(client="b")), "one")))
            gate.let_all()
            await asyncio.gather(*tasks)
            assert order.index("one") <= 2

    run(test())


def test_a_short_request_goes_before_a_long_one_of_the_same_client(demo: Path, gate: Gate) -> None:
    """S28."""

    async def test() -> None:
        async with serving(demo, max_batch=1) as scheduler:
            gate.let_all()
            await whole(await scheduler.submit("demo", job()))  # so that the time of a token is known
            gate.shut()
            running = await scheduler.submit("demo", job())
            await until(lambda: gate.waiting)
            long, short = await scheduler.submit("demo", job(new=80)), await scheduler.submit("demo", job(new=1))
            gate.let_all()
            (_, first), (_, last) = await whole(short), await whole(long)
            assert first.queue_seconds < last.queue_seconds
            await whole(running)

    run(test())


def test_a_running_job_that_is_cancelled_frees_its_slot_within_one_token(demo: Path, gate: Gate) -> None:
    """S21."""

    async def test() -> None:
        async with serving(demo, max_batch=1) as scheduler:
            stream = await scheduler.submit("demo", job(new=80))
            gate.let(3)
            await until(lambda: gate.waiting and len(gate.work) == 3)
            stream.cancel()
            gate.let(1)  # the pass that is under way
            await until(lambda: scheduler.load().running == 0)
            assert len(gate.work) == 4
            events = await stream.take()
            assert isinstance(events[-1], EndEvent)
            assert events[-1].reason == "cancelled"
            assert await stream.take() == []

    run(test())


def test_a_job_that_waits_has_the_slot_of_a_cancelled_one_in_the_next_pass(demo: Path, gate: Gate) -> None:
    async def test() -> None:
        async with serving(demo, max_batch=2) as scheduler:
            leaving, staying = await scheduler.submit("demo", job(new=80)), await scheduler.submit("demo", job(new=80))
            gate.let(4)
            await until(lambda: gate.waiting and len(gate.work) == 4)
            waiting = await scheduler.submit("demo", job("next", new=1))
            leaving.cancel()
            gate.let(1)  # the pass that is under way
            await until(lambda: gate.waiting and len(gate.work) == 5)
            gate.let(1)
            await until(lambda: len(gate.work) == 6)
            assert [len(one.ids) for one in gate.work[5]] == [len("next"), 1]
            gate.let_all()
            assert (await whole(waiting))[1].reason == "length"
            staying.cancel()

    run(test())


def test_a_job_that_is_cancelled_in_the_queue_never_starts(demo: Path, gate: Gate) -> None:
    """S22."""

    async def test() -> None:
        async with serving(demo, max_batch=1) as scheduler:
            first, second = await scheduler.submit("demo", job("moon")), await scheduler.submit("demo", job("river"))
            await until(lambda: gate.waiting)
            assert scheduler.load().waiting == 1
            async with second:
                pass
            assert scheduler.load().waiting == 0
            gate.let_all()
            await whole(first)
            assert all(one.sequence.ids[:5] != list(b"river") for work in gate.work for one in work)
            assert (await whole(second))[1].reason == "cancelled"

    run(test())


def test_a_job_that_is_cancelled_in_its_prompt_gives_no_token(dialled: Path, gate: Gate) -> None:
    """S23."""

    async def test() -> None:
        async with serving(dialled, max_batch=1) as scheduler:
            stream = await scheduler.submit("dialled", job("long " * 80))
            gate.let(1)
            await until(lambda: gate.waiting and len(gate.work) == 1)
            stream.cancel()
            gate.let(1)
            await until(lambda: scheduler.load().running == 0)
            assert (await whole(stream))[0] == []
            assert len(gate.work) == 2, "the prompt has four parts"

    run(test())


@pytest.mark.parametrize(("passes", "where"), [(0, "had 0 new tokens"), (3, "it had 3 new tokens")])
def test_a_running_job_ends_at_its_deadline(demo: Path, gate: Gate, passes: int, where: str) -> None:
    """S30."""

    async def test() -> None:
        async with serving(demo, max_batch=1) as scheduler:
            stream = await scheduler.submit("demo", job(new=80, timeout=0.1))
            gate.let(passes)
            tokens, end = await whole(stream)
            assert (len(tokens), end.reason) == (passes, "error")
            assert isinstance(end.error, DeadlineError)
            assert where in end.error.message
            gate.let(1)
            await until(lambda: scheduler.load().running == 0)

    run(test())


def test_a_waiting_job_ends_at_its_deadline_and_the_server_sets_the_longest(demo: Path, gate: Gate) -> None:
    """S30."""

    async def test() -> None:
        async with serving(demo, max_batch=1, timeout=0.1) as scheduler:
            running = await scheduler.submit("demo", job("moon"))
            await until(lambda: gate.waiting)
            _, end = await whole(await scheduler.submit("demo", job(timeout=100.0)))
            assert isinstance(end.error, DeadlineError)
            assert "its 0.1 s: it waited for a slot all the time" in end.error.message
            assert scheduler.load().waiting == 0
            assert (await whole(running))[1].reason == "error"
            gate.let_all()

    run(test())


def test_a_slow_reader_holds_up_no_other_client_and_gets_all_tokens_later(demo: Path) -> None:
    """S18."""

    async def test() -> None:
        async with serving(demo, max_batch=2) as scheduler:
            slow = await scheduler.submit("demo", job("moon", 80))
            for _ in range(5):
                assert len((await whole(await scheduler.submit("demo", job("river", 40))))[0]) == 40
            await until(lambda: scheduler.load().running == 0)
            assert len(ids(await slow.take())) == 80

    run(test())


def test_a_job_that_can_never_fit_the_memory_is_refused_with_the_numbers(demo: Path) -> None:
    """S32."""
    model = load(demo).manifest.model

    async def test() -> None:
        async with serving(demo, kv_memory=cache_bytes(model, 64)) as scheduler:
            with pytest.raises(UnavailableError, match=r"found 60 prompt tokens and 8 new ones, .* holds texts of 64"):
                await scheduler.submit("demo", job("x" * 60))
            assert len((await whole(await scheduler.submit("demo", job("x" * 50))))[0]) == 8

    run(test())


def test_a_request_for_which_no_memory_is_left_ends_alone_with_503(demo: Path, gate: Gate) -> None:
    """S32."""

    async def test() -> None:
        async with serving(demo) as scheduler:
            for error in (MemoryError(), RuntimeError("[ONNXRuntimeError] bad allocation of 5 bytes at /secret")):
                gate.error = error
                stream = await scheduler.submit("demo", job())
                gate.let_all()
                _, end = await whole(stream)
                assert isinstance(end.error, UnavailableError)
                assert "secret" not in end.error.message
            assert len((await whole(await scheduler.submit("demo", job())))[0]) == 8
            assert scheduler.status == "ready"

    run(test())


def test_a_request_that_fails_inside_tells_its_client_nothing_of_the_inside(demo: Path, gate: Gate) -> None:
    """S46."""

    async def test() -> None:
        async with serving(demo) as scheduler:
            gate.error = RuntimeError("at /secret/path")
            stream = await scheduler.submit("demo", job())
            gate.let_all()
            _, end = await whole(stream)
            assert type(end.error) is ServeError
            assert "secret" not in end.error.message

    run(test())


def test_an_engine_that_stops_ends_all_jobs_and_the_server_is_not_ready(demo: Path, gate: Gate) -> None:
    """S43: an error that is no `Exception` is none of a request."""

    async def test() -> None:
        async with serving(demo, max_batch=1) as scheduler:
            streams = [await scheduler.submit("demo", job()) for _ in range(3)]
            gate.error = SystemExit("of the engine")
            gate.let_all()
            assert str(await scheduler.failure()) == "of the engine"
            for stream in streams:
                _, end = await whole(stream)
                assert end.error is not None
                assert end.error.status == 500
            assert scheduler.status == "failed"
            with pytest.raises(UnavailableError):
                await scheduler.submit("demo", job())

    run(test())


def test_an_engine_that_stops_ends_a_long_queue(demo: Path, gate: Gate) -> None:
    async def test() -> None:
        async with serving(demo, max_batch=1, max_queue=1000) as scheduler:
            streams = [await scheduler.submit("demo", job(client=str(number))) for number in range(500)]
            gate.error = SystemExit("of the engine")
            gate.let_all()
            for stream in streams:
                assert (await asyncio.wait_for(whole(stream), BOUND))[1].reason == "error"

    run(test())


def test_a_server_that_drains_ends_what_it_has_and_takes_nothing_new(demo: Path, gate: Gate) -> None:
    """S41."""

    async def test() -> None:
        async with serving(demo, max_batch=1) as scheduler:
            streams = [await scheduler.submit("demo", job()) for _ in range(3)]
            drain = asyncio.create_task(scheduler.drain(BOUND))
            await until(lambda: scheduler.status == "draining")
            with pytest.raises(UnavailableError) as caught:
                await scheduler.submit("demo", job())
            assert caught.value.headers["Connection"] == "close"
            gate.let_all()
            assert await drain
            for stream in streams:
                assert (await whole(stream))[1].reason == "length"

    run(test())


def test_a_drain_ends_with_the_pass_in_which_the_last_client_leaves(demo: Path, gate: Gate) -> None:
    async def test() -> None:
        async with serving(demo, max_batch=1) as scheduler:
            stream = await scheduler.submit("demo", job(new=80))
            gate.let(2)
            await until(lambda: gate.waiting and len(gate.work) == 2)
            drain = asyncio.create_task(scheduler.drain())
            await until(lambda: scheduler.status == "draining")
            stream.cancel()  # while a pass is under way, so that its slot is still taken
            await asyncio.sleep(0)
            gate.let_all()
            assert await asyncio.wait_for(drain, BOUND)

    run(test())


def test_a_drain_ends_where_the_engine_stops(demo: Path, gate: Gate) -> None:
    async def test() -> None:
        async with serving(demo, max_batch=1) as scheduler:
            await scheduler.submit("demo", job())
            drain = asyncio.create_task(scheduler.drain())
            await until(lambda: scheduler.status == "draining")
            gate.error = SystemExit("of the engine")
            gate.let_all()
            assert not await asyncio.wait_for(drain, BOUND)

    run(test())


def test_a_drain_that_takes_too_long_ends_the_rest_with_an_error(demo: Path, gate: Gate) -> None:
    """S41."""

    async def test() -> None:
        async with serving(demo, max_batch=1) as scheduler:
            streams = [await scheduler.submit("demo", job()) for _ in range(2)]
            assert not await scheduler.drain(0)
            for stream in streams:
                assert isinstance((await whole(stream))[1].error, UnavailableError)
            gate.let_all()

    run(test())


def test_two_hundred_clients_that_vanish_at_random_leave_nothing_behind(demo: Path) -> None:
    """S25, S26."""
    random = np.random.default_rng(0)

    async def test() -> None:
        async with serving(demo, max_batch=4, max_queue=1000) as scheduler:

            async def vanish(number: int) -> None:
                stream = await scheduler.submit("demo", job(f"client {number}", 60, client=str(number % 7)))
                async with stream:
                    await asyncio.sleep(float(random.exponential(0.02)))

            await asyncio.gather(*(vanish(number) for number in range(200)))
            tokens, end = await asyncio.wait_for(whole(await scheduler.submit("demo", job("last", 20))), 5)
            assert (len(tokens), end.reason) == (20, "length")
            await until(lambda: scheduler.load().running == scheduler.load().waiting == 0)

    run(test())


def test_memory_stays_flat_over_many_jobs(demo: Path) -> None:
    """S31, in its short form; the long one is `make soak`."""

    async def test() -> None:
        async with serving(demo, max_batch=4, max_queue=1000) as scheduler:

            async def some(count: int) -> None:
                streams = [
                    await scheduler.submit("demo", job(f"text {n}" * (n % 5 + 1), n % 20 + 1, client=f"client {n}"))
                    for n in range(count)
                ]
                for stream in streams:
                    await whole(stream)

            await some(40)
            tracemalloc.start()
            try:
                await some(20)
                gc.collect()
                before = tracemalloc.get_traced_memory()[0]
                await some(100)
                gc.collect()
                growth = tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()
            assert growth < 100_000, f"{growth} bytes"

    run(test())


def test_log_probabilities_of_the_prompt_come_before_the_first_token(demo: Path) -> None:
    async def test() -> None:
        async with serving(demo) as scheduler:
            stream = await scheduler.submit("demo", job(new=2, prompt_logprobs=3))
            events = [event async for event in stream]
            assert [type(event).__name__ for event in events] == ["PromptEvent", "TokenEvent", "TokenEvent", "EndEvent"]
            assert isinstance(events[0], PromptEvent)
            assert events[0].logprobs[0] is None
            assert [len(one) for one in events[0].alternatives] == [0, 3, 3, 3, 3]

    run(test())


def test_a_text_follows_its_grammar_beside_texts_without_one(demo: Path) -> None:
    class OnlyX:
        def mask(self) -> "OnlyX":
            return self

        ended = False

        def allowed(self) -> NDArray[np.uint32]:
            bits = np.zeros(9, np.uint32)
            bits[ord("x") // 32] = 1 << ord("x") % 32
            return bits

        def accept(self, token: int) -> None:
            assert token == ord("x")

    async def test() -> None:
        async with serving(demo) as scheduler:
            streams = [await scheduler.submit("demo", job(grammar=grammar)) for grammar in (None, OnlyX(), None)]
            plain, held, again = [(await whole(stream))[0] for stream in streams]
            assert held == [ord("x")] * 8
            assert plain == again != held

    run(test())


def test_the_dial_of_each_job_is_reported(dialled: Path) -> None:
    async def test() -> None:
        async with serving(dialled) as scheduler:
            for params, dial in [
                ({"compute": 0.5}, 0.5),
                ({"target_ms": 1.5}, 0.3),
                ({}, None),
                ({"experts": 2}, None),
            ]:
                settings = Params(temperature=0, max_new_tokens=2, **params)
                _, end = await whole(await scheduler.submit("dialled", job(params=settings)))
                assert end.dial == dial

    run(test())


def test_a_busy_server_lowers_the_dial_of_auto_requests_only(dialled: Path, gate: Gate) -> None:
    engine = load(dialled, device="cpu")

    async def test() -> None:
        async with serving(dialled, max_batch=2, max_queue=8, auto_compute=0.5) as scheduler:
            fixed = Params(temperature=0, max_new_tokens=40, compute=1.0)
            streams = [await scheduler.submit("dialled", job(f"text {n}", 40)) for n in range(6)]
            own = await scheduler.submit("dialled", job("fixed", params=fixed, client="b"))
            for _ in range(10):  # the dial is lowered twice, and a second time after a while
                gate.let(3)
                await asyncio.sleep(0.05)
            gate.let_all()
            ends = [(await whole(stream))[1] for stream in streams]
            assert min(end.dial or 0 for end in ends) == 0.5, "the curve goes down to 0.3, the setting to 0.5"
            tokens, end = await whole(own)
            assert (tokens, end.dial) == (alone(engine, "fixed", 40, compute=1.0), 1.0)

    run(test())


def test_auto_compute_needs_a_calibrated_model(demo: Path) -> None:
    with pytest.raises(UserError, match="no model is calibrated, so none has a dial; type: adaptive calibrate"):
        open_scheduler(Settings(models=(str(demo),), auto_compute=0.5))
