"""`POST /v1/embeddings`: OpenAI's shape, its limits, and its place beside texts that decode."""

import asyncio
import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient
from support.cases import each
from support.graphs.tiny_graph import CONTEXT, D, expected_embedding
from support.serving.connection import Connection
from support.serving.schedulers import FailingScheduler, HeldScheduler
from support.serving.served import served
from support.serving.until import until

from adaptive_lm.runtime.generation.loop import Loop
from adaptive_lm.runtime.generation.request import Token
from adaptive_lm.serve.application.build import build
from adaptive_lm.serve.errors import QueueFullError
from adaptive_lm.serve.observe.observer import JobObserver, Observer
from adaptive_lm.serve.routes import embeddings
from adaptive_lm.serve.scheduler.job import EmbeddingEvent, EndEvent, Job
from adaptive_lm.serve.scheduler.open import open_scheduler
from adaptive_lm.serve.settings import Settings

PATH = "/v1/embeddings"
END = EndEvent("embedded", None, 1, 0, 0, 0, 0.0, 0.0)
FULL = QueueFullError("64 requests wait, as many as the queue takes; try again in 3 s", headers={"Retry-After": "3"})


@pytest.fixture
def folder(embedder: Path) -> Path:
    return embedder


@pytest.fixture(scope="module")
def client(embedder: Path) -> Iterator[TestClient]:
    with served(embedder) as client:
        yield client


class Recorder(Observer):
    """Notes each token and each end in the order in which the engine gives them."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, float | None]] = []

    def job(self, model: str, prompt_tokens: int) -> JobObserver:
        return RecordedJob(self.notes)


class RecordedJob(JobObserver):
    """Notes the tokens and the end of one job."""

    def __init__(self, notes: list[tuple[str, float | None]]) -> None:
        self.notes = notes

    def token(self, token: Token) -> None:
        self.notes.append(("token", None))

    def ended(self, reason: str, *, dial: float | None = None, **_: int) -> None:
        self.notes.append((reason, dial))


async def recorded(folder: Path, bodies: list[tuple[str, dict[str, Any]]], **settings: Any) -> Recorder:
    """Serve requests at the same time, and record what the engine does."""
    recorder = Recorder()
    options = Settings(models=(str(folder),), device="cpu", threads=1, **settings)
    scheduler = open_scheduler(options, recorder)
    await scheduler.start()
    try:
        await scheduler.ready()
        app = build(options, scheduler)
        connections = [Connection(app, path, body) for path, body in bodies]
        for connection in connections:
            await connection.task
            assert connection.sent[0]["status"] == 200, connection.text
    finally:
        await scheduler.close()
    return recorder


def vectors(answer: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    return [np.float32(one["embedding"]) for one in answer["data"]]


def test_the_official_client_gets_the_vectors_in_both_encodings(client: TestClient) -> None:
    official = openai.OpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)
    texts = ["hello", "the moon"]
    plain = official.embeddings.create(model="demo", input=texts, encoding_format="float")
    packed = official.embeddings.create(model="demo", input=texts)  # it asks for base64
    assert (plain.object, plain.model, plain.usage.prompt_tokens, plain.usage.total_tokens) == ("list", "demo", 13, 13)
    for answer in (plain, packed):
        assert [one.index for one in answer.data] == [0, 1]
        assert {one.object for one in answer.data} == {"embedding"}
        for text, one in zip(texts, answer.data, strict=True):
            np.testing.assert_array_equal(np.float32(one.embedding), expected_embedding(list(text.encode())))


def test_base64_is_that_of_little_endian_float32(client: TestClient) -> None:
    answer = client.post(PATH, json={"input": "hello", "encoding_format": "base64"}).json()
    numbers = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(numbers, expected_embedding(list(b"hello")))


@pytest.mark.parametrize("given", ["hello", ["hello"], list(b"hello"), [list(b"hello")]])
def test_every_kind_of_input_is_read(client: TestClient, given: Any) -> None:
    answer = client.post(PATH, json={"input": given, "dimensions": D, "user": "someone"}).json()
    np.testing.assert_array_equal(vectors(answer), [expected_embedding(list(b"hello"))])


def test_a_list_longer_than_the_queue_comes_back_in_order(folder: Path) -> None:
    texts = [f"text {number}" for number in range(60)]
    with served(folder, max_queue=1, max_batch=2) as client:
        answer = client.post(PATH, json={"input": texts})
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(vectors(answer.json()), [expected_embedding(list(one.encode())) for one in texts])


@each(
    ("body", "status", "param", "message"),
    [
        ({"input": ""}, 400, "input", "found an empty prompt"),
        ({"input": ["a", ""]}, 400, "input", "found an empty prompt"),
        ({"input": []}, 400, "input", ""),
        ({"input": [[]]}, 400, "input", ""),
        ({"input": [257]}, 400, "input", "found token 257"),
        ({"input": "x" * (CONTEXT + 1)}, 400, "input", "found a text of 97 tokens, this model's context is 96 tokens"),
        ({"input": ["a"] * 2049}, 400, "input", ""),
        ({"input": "a", "dimensions": 4}, 400, "dimensions", "found dimensions 4, the vectors of this model have 8"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format", ""),
        ({"input": "a", "compute": "auto"}, 400, "compute", 'found compute "auto", which depends on the load'),
        ({"input": "a", "heads": 2}, 400, None, "the number of heads is fixed in this model"),
        ({"input": "a", "model": "none"}, 404, "model", "there is no model 'none'"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    client: TestClient, body: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    response = client.post(PATH, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), response.text
    assert message in error["message"]


def test_a_text_may_fill_the_context(client: TestClient) -> None:
    answer = client.post(PATH, json={"input": "x" * CONTEXT}).json()
    np.testing.assert_array_equal(vectors(answer), [expected_embedding([ord("x")] * CONTEXT)])


@pytest.mark.parametrize(
    ("body", "dial"), [({"model": "demo@0.5"}, 0.5), ({"compute": 0.5}, 0.5), ({"router_top_p": 0.3}, None), ({}, None)]
)
def test_the_dial_of_a_request_reaches_its_jobs(folder: Path, body: dict[str, Any], dial: float | None) -> None:
    async def run() -> Job:
        scheduler = HeldScheduler.of(folder)
        connection = Connection(build(Settings(), scheduler), PATH, {"input": "a", **body})
        await until(lambda: bool(scheduler.streams))
        connection.leave()
        await connection.task
        return scheduler.streams[0].job

    job = asyncio.run(run())
    assert job.embeds
    assert job.params.compute == dial
    assert job.params.router_top_p == body.get("router_top_p")


def test_the_dial_of_the_server_under_load_does_not_touch_embeddings(folder: Path) -> None:
    bodies = [("/v1/completions", {"prompt": "a", "max_tokens": 4}), (PATH, {"input": "a"})]
    ends = dict(asyncio.run(recorded(folder, bodies, auto_compute=0.5)).notes)
    assert ends.pop("token") is None
    assert ends.pop("embedded") is None
    assert list(ends.values()) == [1.0]


def test_a_client_that_leaves_ends_what_is_computed_and_what_waits(folder: Path) -> None:
    async def run() -> None:
        scheduler = HeldScheduler.of(folder)
        connection = Connection(build(Settings(), scheduler), PATH, {"input": ["a"] * 20})
        await until(lambda: len(scheduler.streams) == embeddings.AT_A_TIME)
        connection.leave()
        await connection.task
        assert len(scheduler.streams) == embeddings.AT_A_TIME
        assert all(one.cancelled for one in scheduler.streams)

    asyncio.run(run())


def test_few_texts_of_a_list_are_in_the_scheduler_at_a_time(folder: Path) -> None:
    async def run() -> None:
        scheduler = HeldScheduler.of(folder)
        connection = Connection(build(Settings(), scheduler), PATH, {"input": [f"{n}" for n in range(10)]})
        most = ended = 0
        while ended < 10:
            await until(lambda count=ended: len(scheduler.streams) > count)  # type: ignore[misc]
            await asyncio.sleep(0)
            most = max(most, sum(not one.cancelled for one in scheduler.streams))
            stream = scheduler.streams[ended]
            vector = np.full(D, int(bytes(stream.job.prompt)), np.float32)
            stream.events.put_nowait([EmbeddingEvent(vector), END])
            stream.events.put_nowait([])
            ended += 1
        await connection.task
        assert most == embeddings.AT_A_TIME
        assert connection.text.count("embedding") == 10 + 10
        for number in range(10):
            assert f'"index":{number},"embedding":[{number}.0,' in connection.text

    asyncio.run(run())


def test_a_full_queue_refuses_the_first_text_with_its_own_status(folder: Path) -> None:
    class Full:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        async def submit(self, model: str, job: Job) -> Any:
            raise FULL

    with served(folder, wrap=Full) as client:
        response = client.post(PATH, json={"input": ["a", "b"]})
    assert (response.status_code, response.headers["Retry-After"]) == (429, "3")


def test_a_later_text_waits_for_its_place_until_the_deadline(folder: Path) -> None:
    marks = []

    class Filling(HeldScheduler):
        async def submit(self, model: str, job: Job) -> Any:
            marks.append(job.submitted_again)
            if self.streams:
                raise FULL
            return await super().submit(model, job)

    async def run() -> str:
        scheduler = Filling.of(folder)
        connection = Connection(build(Settings(timeout=0.2), scheduler), PATH, {"input": ["a", "b"]})
        await connection.task
        assert all(one.cancelled for one in scheduler.streams)
        assert connection.sent[0]["status"] == 504
        return connection.text

    assert "did not end within its 0.2 s: 0 of 2 texts were embedded" in asyncio.run(run())
    assert len(marks) > 2
    assert marks == [False, *[True] * (len(marks) - 1)], "to wait for a place is no rejection"


def test_a_deadline_ends_a_text_in_the_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Loop.step

    def slow(self: Loop) -> Any:
        time.sleep(0.3)
        return step(self)

    with served(folder, timeout=0.1) as client:
        monkeypatch.setattr(Loop, "step", slow)
        response = client.post(PATH, json={"input": "x" * CONTEXT})
    assert response.status_code == 504
    assert "send fewer or shorter texts" in response.json()["error"]["message"]


def test_an_error_of_one_text_is_the_answer(folder: Path) -> None:
    with served(folder, wrap=lambda inner: FailingScheduler(inner, FULL, after=0)) as client:
        response = client.post(PATH, json={"input": ["a", "b"]})
    assert response.status_code == 429


def test_a_text_that_decodes_goes_on_between_the_texts_of_a_long_list(folder: Path) -> None:
    """Its next token waits for at most one pass, which reads a part of one text."""
    writes = {"prompt": "a", "max_tokens": 60, "temperature": 0, "logit_bias": {"256": -100}}
    bodies: list[tuple[str, dict[str, Any]]] = [("/v1/completions", writes), (PATH, {"input": ["x" * 90] * 40})]
    kinds = [kind for kind, _ in asyncio.run(recorded(folder, bodies)).notes]
    assert (kinds.count("embedded"), kinds.count("token")) == (40, 60)
    first, last = kinds.index("token"), len(kinds) - 1 - kinds[::-1].index("token")
    gaps = "".join("t" if kind == "token" else "v" for kind in kinds[first : last + 1]).split("t")
    assert max(map(len, gaps)) == 1


def test_vectors_have_the_same_bits_alone_and_beside_others(client: TestClient) -> None:
    texts = ["hello", "x" * 70, "the moon", "y" * 33, "a"]
    together = vectors(client.post(PATH, json={"input": texts}).json())
    alone = [vectors(client.post(PATH, json={"input": text}).json())[0] for text in texts]
    np.testing.assert_array_equal(together, alone)


@each(
    "raw",
    ["null", "true", "{}", "1.5", "[true]", '[1, "a"]', '[["a"]]', "[[1], []]", "[-1]", "[99999999999999999999]",
     "[1.5]", '"\\ud800"', '["\\ud800"]', '[null]', "[[[1]]]", '"\\u0000"'],
)  # fmt: skip
def test_no_input_gives_a_500(client: TestClient, raw: str) -> None:
    response = client.post(PATH, content=f'{{"input": {raw}}}', headers={"Content-Type": "application/json"})
    assert response.status_code == (200 if raw == '"\\u0000"' else 400), response.text
