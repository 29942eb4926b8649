"""The endpoints that compute nothing with a model: tokens and counts."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from ..errors import BadRequestError
from ..protocols.anthropic.messages import CountBody, TokenCount
from ..protocols.names import find_model
from ..protocols.ours.texts import Content, DetokenizeBody, TokenizeBody, TokenizerInfo, Tokens
from ..protocols.prepare import conversation_ids, encode, encode_special
from ..protocols.tool_use import tool_use_of
from .requests import caller_of, json_answer, read_body


async def tokenize(request: Request) -> Response:
    """Return the ids of a text."""
    body = await read_body(request, TokenizeBody)
    model, _ = find_model(caller_of(request).models, body.model)
    if body.prompt is not None:
        ids = await asyncio.to_thread(encode_special, model, body.prompt)
    else:
        ids = await asyncio.to_thread(encode, model, body.content or "", "content")
    bos = model.tokenizer.bos_id
    if body.add_special_tokens and bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    return json_answer(Tokens(tokens=ids, count=len(ids), max_model_len=model.context), body.ignored)


async def detokenize(request: Request) -> Response:
    """Return the text of ids."""
    body = await read_body(request, DetokenizeBody)
    model, _ = find_model(caller_of(request).models, body.model)
    size = model.tokenizer.size
    wrong = next((token for token in body.tokens if not 0 <= token < size), None)
    if wrong is not None:
        raise BadRequestError(f"found token {wrong}, this model has 0 to {size - 1}", param="tokens")
    text = await asyncio.to_thread(model.tokenizer.decode, body.tokens)
    return json_answer(Content(content=text, prompt=text), body.ignored)


async def tokenizer_info(request: Request) -> Response:
    """Describe the tokenizer of the first model."""
    model, _ = find_model(caller_of(request).models, None)
    manifest, tokenizer = model.manifest, model.tokenizer
    names = {number: text for text, number in tokenizer.vocabulary.items()}
    bos = manifest.generation.bos_id
    info = TokenizerInfo(
        size=tokenizer.size,
        bos_token=None if bos is None else names.get(bos),
        eos_token=names.get(manifest.model.eos_id),
        add_bos_token=manifest.generation.add_bos,
        chat_template=manifest.chat_template,
    )
    return json_answer(info, [])


async def count_tokens(request: Request) -> Response:
    """Count the tokens of a conversation."""
    body = await read_body(request, CountBody)
    model, _ = find_model(caller_of(request).models, body.model)

    def count() -> int:
        chat = body.chat()
        return len(conversation_ids(chat, model, tool_use_of(chat, model, None)))

    number = await asyncio.to_thread(count)
    return json_answer(TokenCount(input_tokens=number), body.ignored)
