"""A server that speaks the API with scripted tokens and compute, for tests and pictures of the page."""

import asyncio
import json
import math
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from adaptive_lm.serve.page.routes import page_routes

LAYERS, EXPERTS, HEADS = 8, 8, 4
STORY = (
    "Mountains form where plates of the Earth's crust move against each other. When two continents collide, the rock"
    " has nowhere to go: it folds, breaks and piles up, slowly, over tens of millions of years.\n\nThe Himalayas began"
    " to rise when India met Asia, about fifty million years ago, and they still grow by a few millimetres a year."
    " Other mountains are volcanoes, built layer by layer from lava and ash.\n\nWhile they rise, wind, rain and ice"
    " wear them down."
)


@dataclass
class Stub:
    """What the server does, and what it was sent."""

    key: str | None = None
    """The key that requests need; None lets all in."""
    pause: float = 0.0
    """Seconds between two chunks."""
    props: dict[str, Any] = field(default_factory=dict)
    """Fields of /props that differ."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the first model that differ."""
    texts: dict[str, str] = field(default_factory=dict)
    """Prompt -> text of the answer; others get `STORY`."""
    refuse: tuple[int, str, dict[str, str]] | None = None
    """Status, message and headers of the next answer."""
    break_after: int | None = None
    """Tokens after which the connection breaks."""
    late: bool = False
    """Whether text and log-probabilities of two tokens come with the second, the compute of each at once."""
    held: str = ""
    """Text that comes after the last token, without one of its own, as the begin of a stop does."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies, in order, with the path and the key."""
    polls: int = 0
    """Times that /props was asked for."""
    gone: int = 0
    """Streams that clients left."""
    address: str = ""

    def properties(self) -> dict[str, Any]:
        """Return the body of /props."""
        model = {"context": 512, "layers": LAYERS, "experts": EXPERTS, "heads": HEADS, "routes_heads": True}
        model |= {"exit_layers": [3, 5], "chat": True, "calibrated": True, "dials": [0.25, 0.5, 0.75], "dial": 1.0}
        models = [
            {"name": "demo", **model, **self.model},
            {"name": "plain", **model, "chat": False, "calibrated": False},
        ]
        load = {"running": 3, "max_batch": 8, "waiting": 1, "max_queue": 64, "dial": 0.8}
        load["tokens_per_second"] = 212.4 + 60 * math.sin(self.polls * 1.9)
        return {"version": "0.1.0", "status": "ready", "models": models, "auto": True, "load": load, **self.props}


def record(text: str, index: int, compute: float) -> dict[str, Any]:
    """Script the compute of a token: long words take more of everything, and a lower dial takes less."""
    effort = compute * min(1.0, 0.25 + len(text.strip()) / 9 + (0.15 if index % 5 == 0 else 0))
    run = [layer for layer in range(LAYERS) if layer < 3 or (layer * 7 + index * 3) % 8 < 8 * effort + 1]
    exit_layer = 5 if effort < 0.4 and index % 3 == 0 else None
    run = [layer for layer in run if exit_layer is None or layer <= exit_layer]
    wide = max(1, round(3.4 * effort))
    experts = [sorted({(len(text) * 5 + index * k + layer * 3 + k) % EXPERTS for k in range(wide)}) for layer in run]
    heads = [list(range(HEADS)) if effort > 0.7 else sorted({index % HEADS, (index + layer) % HEADS}) for layer in run]
    spread = dict(zip(run, zip(experts, heads, strict=True), strict=True))
    share = sum(len(used) / EXPERTS * 1.7 + 0.35 for used in experts) / LAYERS
    return {
        "id": index + 100,
        "text": text,
        "experts": [spread[layer][0] if layer in spread else [] for layer in range(LAYERS)],
        "heads": [spread[layer][1] if layer in spread else [] for layer in range(LAYERS)],
        "windows": [0] * LAYERS,
        "layers_run": run,
        "exit_layer": exit_layer,
        "executed_flops": min(1.0, share) * 1e6,
        "dense_flops": 1e6,
        "seconds": 0.0008 + 0.003 * share + (0.02 if index == 0 else 0),
    }


def pieces(text: str) -> list[str]:
    """Cut a text into tokens: words with their space, line ends and marks."""
    return re.findall(r"\n+|[ ]?[A-Za-z']+|[ ]?[^\sA-Za-z]+|[ ]+", text)


def alternatives(text: str, index: int) -> list[dict[str, Any]]:
    """Script five alternatives, the token itself among them."""
    first = 0.3 + 0.65 * abs(math.sin(index * 1.7))
    others = [" the", " a", ",", " rock"]
    shares = [first, *((1 - first) * 0.5**k for k in range(1, 5))]
    return [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in zip([text, *others], shares, strict=True)]


def stub_app(stub: Stub) -> Starlette:
    """Build the application: the page, and the API as the script says."""

    def locked(request: Request) -> Response | None:
        if stub.key is None or request.headers.get("authorization") == f"Bearer {stub.key}":
            return None
        error = {"message": "found no valid key, expected `Authorization: Bearer KEY`", "type": "authentication_error"}
        return JSONResponse({"error": error}, 401)

    async def props(request: Request) -> Response:
        stub.polls += 1
        return locked(request) or JSONResponse(stub.properties())

    async def generate(request: Request) -> Response:
        if (refused := locked(request)) is not None:
            return refused
        body = await request.json()
        stub.requests.append({"path": request.url.path, **body})
        if stub.refuse is not None:
            (status, message, headers), stub.refuse = stub.refuse, None
            return JSONResponse({"error": {"message": message, "type": "x", "code": None}}, status, headers)
        return StreamingResponse(stream(request, body), media_type="text/event-stream")

    async def stream(request: Request, body: dict[str, Any]) -> AsyncIterator[bytes]:
        chat = request.url.path.endswith("/chat/completions")
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        dial = 0.7 if body.get("compute") == "auto" else body.get("compute") or 1.0
        tokens = pieces(stub.texts.get(prompt, STORY))[: body.get("max_tokens", 10**6)]
        if dial < 0.5 and prompt not in stub.texts:
            tokens = [*tokens[:40], *pieces(" on top of itself, slowly.")]
        records = [record(text, index, dial) for index, text in enumerate(tokens)]
        done = False
        try:
            for index, one in enumerate(records):
                if index == stub.break_after:
                    stub.break_after = None
                    raise ConnectionError("scripted")
                own = choice(one, index, chat)
                if stub.late and index % 2 == 0:
                    own = {**own, "compute": [{**one, "text": ""}], "logprobs": None, "text": "", "delta": {}}
                elif stub.late:
                    both = choice(records[index - 1], index - 1, chat)
                    text = both["text"] + own["text"]
                    scores = {name: both["logprobs"][name] + own["logprobs"][name] for name in own["logprobs"]}
                    own = {**own, "compute": [{**one, "text": text}], "logprobs": scores, "text": text}
                yield event({"choices": [own]})
                if stub.pause:
                    await asyncio.sleep(stub.pause)
                elif index % 50 == 49:
                    await asyncio.sleep(0)
            if stub.held:
                yield event({"choices": [{"index": 0, "delta": {"content": stub.held}, "text": stub.held}]})
            yield event({"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}]})
            share = sum(one["executed_flops"] for one in records) / max(1, len(records)) / 1e6
            layers = sum(len(one["layers_run"]) for one in records)
            usage = {
                "share": share,
                "experts_per_token": sum(len(used) for one in records for used in one["experts"]) / max(1, layers),
                "layers_per_token": layers / max(1, len(records)),
                "milliseconds_per_token": 3.1 * share,
                "dial": dial,
            }
            yield event({"choices": [], "usage": {"completion_tokens": len(records), "compute": usage}})
            yield b"data: [DONE]\n\n"
            done = True
        finally:
            stub.gone += not done

    def choice(one: dict[str, Any], index: int, chat: bool) -> dict[str, Any]:
        others = alternatives(one["text"], index)
        shared = {"index": 0, "finish_reason": None, "compute": [one]}
        if chat:
            content = [{**others[0], "top_logprobs": others}]
            return {**shared, "delta": {"content": one["text"]}, "logprobs": {"content": content}}
        top = {other["token"]: other["logprob"] for other in others}
        logprobs = {"tokens": [one["text"]], "token_logprobs": [others[0]["logprob"]], "top_logprobs": [top]}
        return {**shared, "text": one["text"], "logprobs": logprobs}

    paths = [Route(path, generate, methods=["POST"]) for path in ("/v1/chat/completions", "/v1/completions")]
    return Starlette(routes=[*page_routes(), Route("/props", props), *paths])


def event(data: dict[str, Any]) -> bytes:
    """Write a server-sent event."""
    return f"data: {json.dumps(data)}\n\n".encode()


@contextmanager
def serve(stub: Stub, port: int = 0) -> Iterator[Stub]:
    """Run the scripted server, on a free port."""
    with run(stub_app(stub), port) as stub.address:
        yield stub


@contextmanager
def run(app: Any, port: int = 0) -> Iterator[str]:
    """Run an application in a thread, on a free port; yield its address."""
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()
