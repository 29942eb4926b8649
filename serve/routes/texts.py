"""The endpoints that compute no new text: tokens, counts and embeddings."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from ..errors import BadRequestError, UnsupportedError
from ..protocols.anthropic.messages import CountBody, TokenCount
from ..protocols.names import find_model
from ..protocols.openai.embeddings import EmbeddingBody, embedding_list
from ..protocols.order import room_for
from ..protocols.ours.texts import Content, DetokenizeBody, TokenizeBody, Tokens
from ..protocols.prepare import conversation_ids, encode
from ..protocols.tool_use import tool_use_of
from .requests import caller_of, json_answer, read_body


async def tokenize(request: Request) -> Response:
    """Return the ids of a text."""
    body = await read_body(request, TokenizeBody)
    model, _ = find_model(caller_of(request).models, body.model)
    ids = await asyncio.to_thread(encode, model, body.content, "content")
    return json_answer(Tokens(tokens=ids, count=len(ids), max_model_len=model.context), body.ignored)


async def detokenize(request: Request) -> Response:
    """Return the text of ids."""
    body = await read_body(request, DetokenizeBody)
    model, _ = find_model(caller_of(request).models, body.model)
    size = model.tokenizer.size
    wrong = next((token for token in body.tokens if not 0 <= token < size), None)
    if wrong is not None:
        raise BadRequestError(f"found token {wrong}, this model has 0 to {size - 1}", param="tokens")
    return json_answer(Content(content=await asyncio.to_thread(model.tokenizer.decode, body.tokens)), body.ignored)


async def count_tokens(request: Request) -> Response:
    """Count the tokens of a conversation."""
    body = await read_body(request, CountBody)
    model, _ = find_model(caller_of(request).models, body.model)

    def count() -> int:
        chat = body.chat()
        return len(conversation_ids(chat, model, tool_use_of(chat, model, None)))

    number = await asyncio.to_thread(count)
    return json_answer(TokenCount(input_tokens=number), body.ignored)


async def embeddings(request: Request) -> Response:
    """Return a vector for each text."""
    body = await read_body(request, EmbeddingBody)
    model, _ = find_model(caller_of(request).models, body.model)
    if model.embed is None:
        raise UnsupportedError(
            f"the model {model.name} was exported without its hidden states, so it has no embeddings; "
            "use POST /v1/completions or POST /v1/chat/completions",
            code="unsupported",
            param="model",
        )
    texts = [
        await asyncio.to_thread(encode, model, one, "input", begins=True) if isinstance(one, str) else one
        for one in body.inputs
    ]
    for ids in texts:
        room_for(ids, 1, model, "input")
    vectors = await model.embed(texts)
    answer = embedding_list(body, body.model or model.name, vectors, sum(map(len, texts)))
    return json_answer(answer, body.ignored)
