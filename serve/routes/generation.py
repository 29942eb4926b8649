"""The endpoints that generate text."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from ..protocols.answer import Answer
from ..protocols.anthropic.answer import MessagesAnswer
from ..protocols.anthropic.messages import MessagesBody
from ..protocols.body import Body
from ..protocols.openai.chat import ChatBody
from ..protocols.openai.chat_answer import ChatAnswer
from ..protocols.openai.completion_answer import CompletionAnswer
from ..protocols.openai.completions import CompletionBody
from ..protocols.order import Caller, Order
from ..protocols.prepare import prepare_chat, prepare_completion
from ..protocols.responses.answer import ResponsesAnswer
from ..protocols.responses.body import ResponsesBody
from .requests import caller_of, read_body, scheduler_of
from .stream import OrderAnswer

Kind = TypeVar("Kind", bound=Body)


async def generate(
    request: Request,
    kind: type[Kind],
    prepare: Callable[[Kind, Caller], Order],
    answer: Callable[[Order, Kind], Answer],
) -> Response:
    """Read a body, prepare its jobs in a thread, and answer them."""
    body = await read_body(request, kind)
    order = await asyncio.to_thread(prepare, body, caller_of(request))
    request.scope["state"]["model"] = order.model.name
    return OrderAnswer(scheduler_of(request), order, answer(order, body), keep_alive=request.app.keep_alive)


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    return await generate(request, ChatBody, prepare_chat, lambda order, _: ChatAnswer(order))


async def completions(request: Request) -> Response:
    """Continue a text."""
    return await generate(request, CompletionBody, prepare_completion, lambda order, _: CompletionAnswer(order))


async def responses(request: Request) -> Response:
    """Answer a conversation, in the shape of OpenAI's Responses."""
    return await generate(
        request, ResponsesBody, lambda body, caller: prepare_chat(body.chat(), caller), ResponsesAnswer
    )


async def messages(request: Request) -> Response:
    """Answer a conversation, in the shape of Anthropic's Messages."""
    return await generate(
        request, MessagesBody, lambda body, caller: prepare_chat(body.chat(), caller),
        lambda order, _: MessagesAnswer(order),
    )  # fmt: skip
