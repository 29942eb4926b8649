"""Bodies to orders: prompts to ids, settings to `Params`; may take a second, so endpoints call it in a thread."""

from collections.abc import Sequence
from typing import Any

from ...contract.errors import UserError
from ...runtime.chat.prompt import ChatOptions, chat_ids
from ...runtime.chat.templates import tool_template_of
from ..errors import BadRequestError
from ..scheduler.job import Job, ModelInfo
from .names import find_model
from .openai.chat import ChatBody
from .openai.completions import DEFAULT_NEW_TOKENS, CompletionBody
from .openai.sampling import SamplingFields
from .order import Caller, Order, checked_params, room_for, user_error
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
