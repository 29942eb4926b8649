"""Bodies to orders: prompts to ids, settings to `Params`; may take a second, so endpoints call it in a thread."""

from collections.abc import Sequence
from typing import Any

from ...contract.errors import UserError
from ...runtime.chat.prompt import ChatOptions, chat_ids
from ...runtime.chat.templates import tool_template_of
from ..errors import BadRequestError, UnavailableError, UnsupportedError
from ..scheduler.job import Job, ModelInfo
from .names import find_model
from .openai.chat import ChatBody
from .openai.completions import DEFAULT_NEW_TOKENS, CompletionBody
from .openai.embeddings import EmbeddingBody, EmbeddingOrder
from .openai.sampling import SamplingFields
from .order import Caller, Order, checked_params, require_prompt, room_for, user_error
from .tool_use import ToolUse, tool_use_of


def prepare_chat(body: ChatBody, caller: Caller) -> Order:
    """Return the jobs of a chat.

    Raises:
        ServeError: The model does not exist, or cannot do this.
    """
    model, dial = find_model(caller.models, body.model)
    tools = tool_use_of(body, model, caller.grammars)
    prompt = conversation_ids(body, model, tools)
    new = room_for(prompt, body.wanted, model, "messages")
    jobs = jobs_of(body, model, dial, caller, [(prompt, new)], body.alternatives, tools=tools)
    calls = {} if tools is None else {"new_parser": tools.parser, "most_calls": tools.most}
    return order_of(body, model, jobs, logprobs=body.alternatives, **calls)


def prepare_completion(body: CompletionBody, caller: Caller) -> Order:
    """Return the jobs of a completion: for each prompt one, or `n`.

    Raises:
        ServeError: The model does not exist, or cannot do this.
    """
    model, dial = find_model(caller.models, body.model)
    wanted = DEFAULT_NEW_TOKENS if body.max_tokens is None else max(body.max_tokens, 1)
    prompts = []
    for one in body.prompts:
        ids = encode(model, one, "prompt", begins=True) if isinstance(one, str) else one
        prompts.append((ids, room_for(ids, wanted, model, "prompt")))
    scores = body.logprobs if body.echo else None
    jobs = jobs_of(body, model, dial, caller, prompts, body.logprobs, prompt_logprobs=scores)
    return order_of(body, model, jobs, logprobs=body.logprobs, echo=bool(body.echo), hides_text=body.max_tokens == 0)


def prepare_embeddings(body: EmbeddingBody, caller: Caller) -> EmbeddingOrder:
    """Return the jobs that embed the texts of a body.

    Raises:
        ServeError: The model does not exist, has no embeddings, or cannot take a text.
    """
    model, named = find_model(caller.models, body.model)
    if not model.manifest.model.hidden_states:
        raise UnsupportedError(
            f"the model {model.name} was exported without its hidden states, so it has no embeddings; export it with "
            "`adaptive export RUN --onnx --embeddings`",
            code="unsupported",
            param="model",
        )
    dial, auto = body.dial(named, caller.settings, model.manifest)
    if auto is not None:
        raise BadRequestError(
            'found compute "auto", which depends on the load, so that the vectors of two requests could not be '
            "compared; give a number, or leave compute out",
            param="compute",
        )
    width = model.manifest.model.dim
    if body.dimensions not in (None, width):
        raise BadRequestError(
            f"found dimensions {body.dimensions}, the vectors of this model have {width} numbers and cannot be "
            "cut; leave dimensions out",
            param="dimensions",
        )
    params, jobs = checked_params(**dial), []
    for one in body.inputs:
        ids = encode(model, one, "input", begins=True) if isinstance(one, str) else one
        require_embeddable(ids, model)
        jobs.append(Job(prompt=tuple(ids), params=params, client=caller.client, embeds=True))
    return EmbeddingOrder(
        model=model,
        name=body.model or model.name,
        jobs=jobs,
        base64=body.encoding_format == "base64",
        ignored=[*body.ignored, *["compute_details"] * body.compute_details],
    )


def require_embeddable(ids: Sequence[int], model: ModelInfo) -> None:
    """Refuse a text that is empty or too long.

    Raises:
        ServeError: It does not fit the context, or the memory of the server.
    """
    require_prompt(ids, model, "input")
    if len(ids) > model.context:
        raise BadRequestError(
            f"found a text of {len(ids)} tokens, this model's context is {model.context} tokens; split the text",
            code="context_length_exceeded",
            param="input",
        )
    if model.room is not None and len(ids) > model.room:
        raise UnavailableError(
            f"found a text of {len(ids)} tokens, the memory of this server holds texts of {model.room}; split the "
            "text, or start the server with more --kv-memory",
            code="out_of_memory",
        )


def conversation_ids(body: ChatBody, model: ModelInfo, tools: ToolUse | None = None) -> list[int]:
    """Return the ids of a conversation, up to where the answer begins."""
    if model.manifest.chat_template is None:
        raise BadRequestError(
            f"the model {model.name} has no chat template: it was not trained on conversations; "
            "use POST /v1/completions",
            param="messages",
        )
    uses = any(turn.role == "tool" or turn.tool_calls for turn in body.messages)
    if uses and tool_template_of(model.manifest) is None:
        raise BadRequestError(
            f"found turns of tools, the model {model.name} has no chat template that takes them; leave them out",
            param="messages",
        )
    options = ChatOptions(
        tools=() if tools is None else tools.definitions,
        documents=body.documents or (),
        variables=body.chat_template_kwargs or {},
    )
    try:
        return chat_ids(model.manifest, model.tokenizer, body.conversation, options)
    except UserError as error:
        message = str(error).replace("; use --raw to send the prompt as it is", "; use POST /v1/completions")
        raise BadRequestError(message, param="messages") from None


def encode(model: ModelInfo, text: str, param: str, *, begins: bool = False) -> list[int]:
    """Return the ids of a text; where it `begins`, with the token that begins a text, if the model has one."""
    try:
        return model.tokenizer.encode_prompt(text) if begins else model.tokenizer.encode(text)
    except UserError as error:
        raise user_error(error, param) from None


def encode_special(model: ModelInfo, text: str) -> list[int]:
    """Return the ids of a text in which special tokens that it spells out are those tokens."""
    try:
        return model.tokenizer.encode_rendered(text, {})
    except UserError as error:
        raise user_error(error, "prompt") from None


def jobs_of(
    body: SamplingFields,
    model: ModelInfo,
    named: float | None,
    caller: Caller,
    prompts: Sequence[tuple[list[int], int]],
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    tools: ToolUse | None = None,
) -> list[Job]:
    """Return `n` jobs for each prompt, with the most new tokens that stand beside it."""
    dial, auto = body.dial(named, caller.settings, model.manifest)
    n, most = body.n or 1, caller.settings.max_queue
    if len(prompts) * n > most:
        raise BadRequestError(
            f"found {len(prompts) * n} texts in one request, this server takes {most}; send fewer at a time"
        )
    fields: dict[str, Any] = {**model.manifest.generation.sampling, **body.sampling, **dial, "stop": body.stops}
    if logprobs is not None:
        fields["logprobs"] = logprobs
    if tools is None:
        grammar = caller.grammars.compile(body.response_format, model)
    else:
        grammar, fields["show_special"] = tools.grammar, tools.shown
    jobs = []
    for ids, new in prompts:
        prompt = tuple(ids)  # one object for all its texts: `prompt_tokens` counts it once
        for choice in range(n):
            params = checked_params(**fields, seed=body.seed_of(choice), max_new_tokens=new)
            jobs.append(
                Job(
                    prompt=prompt, params=params, client=caller.client, auto=auto, grammar=grammar,
                    prompt_logprobs=prompt_logprobs,
                )
            )  # fmt: skip
    return jobs


def order_of(body: SamplingFields, model: ModelInfo, jobs: Sequence[Job], **answer: Any) -> Order:
    """Return the order of a body and its jobs."""
    options = body.stream_options
    return Order(
        model=model,
        name=body.model or model.name,
        jobs=jobs,
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        details=body.compute_details,
        ignored=body.ignored,
        **answer,
    )
