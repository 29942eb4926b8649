"""Answers to `POST /v1/responses`."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from ....runtime.chat.tools.parts import ArgumentsPart, CallBegin
from ...errors import ServeError
from ..answer import frame, new_id, now, prompt_tokens
from ..body import Body
from ..openai.chat_answer import chosen
from ..order import Order
from ..ours.compute import ComputeUsage
from ..text import Piece, ScoredToken, Text
from .body import ResponsesBody

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(Body):
    """The text."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[dict[str, Any]]
    compute: list[dict[str, Any]] = Field(default_factory=list)
    """Not of OpenAI: the compute of each token, with `compute_details`."""


class OutputMessage(Body):
    """The answer as a turn of the conversation."""

    type: Literal["message"]
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(Body):
    """A call of a tool."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class CachedTokens(Body):
    """Parts of the prompt."""

    cached_tokens: int


class ReasoningTokens(Body):
    """Parts of the text."""

    reasoning_tokens: int


class ResponseUsage(Body):
    """Tokens of the prompt and the text."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int
    compute: ComputeUsage
    """Not of OpenAI: the compute of the new tokens."""


class Response(Body):
    """The whole answer."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: None
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[Any]
    top_p: float | None
    usage: ResponseUsage | None


def plain(value: Any) -> Any:
    """Return a part of a body as it was sent."""
    return value.model_dump(exclude_unset=True) if isinstance(value, Body) else value


class ResponsesAnswer:
    """Writes the answer to a response."""

    def __init__(self, order: Order, body: ResponsesBody) -> None:
        self.order, self.body = order, body
        self.id, self.message_id = new_id("resp_"), new_id("msg_")
        self.created = now()
        self._number = 0
        self._message_index: int | None = None
        """Place of the message among the items of the output; None before it begins."""
        self._calls: list[tuple[int, str, CallBegin]] = []
        """Place and id of the item of each call."""

    def begin(self) -> Iterable[bytes]:
        """Return the start of the response, and of its message where no tools may be called."""
        for kind in ("response.created", "response.in_progress"):
            yield self._frame(kind, response=self._response("in_progress", [], None))
        if self.order.new_parser is None:
            yield from self._begin_message()

    def piece(self, piece: Piece, text: Text) -> Iterable[bytes]:
        """Return the new text and calls."""
        if piece.text or piece.records or piece.scored:
            if self._message_index is None:
                yield from self._begin_message()
            fields: dict[str, Any] = {"compute": list(piece.records)} if piece.records else {}
            logprobs = self._logprobs(piece.scored)
            yield self._frame(
                "response.output_text.delta", **self._place, delta=piece.text, logprobs=logprobs, **fields
            )
        for part in piece.parts:
            if isinstance(part, CallBegin):
                if self._calls:
                    yield from self._end_call(len(self._calls) - 1, text, "completed")
                self._calls.append((self._next_index, new_id("fc_"), part))
                item = self._call_item(len(self._calls) - 1, "", "in_progress")
                yield self._frame("response.output_item.added", output_index=self._calls[-1][0], item=item)
            elif isinstance(part, ArgumentsPart):
                index, item_id, _ = self._calls[part.index]
                kind = "response.function_call_arguments.delta"
                yield self._frame(kind, item_id=item_id, output_index=index, delta=part.text)

    def finish(self, texts: Sequence[Text]) -> Iterable[bytes]:
        """Return the end of the items and of the response."""
        text = texts[0]
        status = self._status(text)
        if self._calls:
            yield from self._end_call(len(self._calls) - 1, text, status)
        if self._message_index is None and not self._calls:
            yield from self._begin_message()
        if self._message_index is not None:
            part = self._part(text.text, text.scored, text.records)
            logprobs = self._logprobs(text.scored)
            yield self._frame("response.output_text.done", **self._place, text=text.text, logprobs=logprobs)
            yield self._frame("response.content_part.done", **self._place, part=part)
            message = self._message(status, [part])
            yield self._frame("response.output_item.done", output_index=self._message_index, item=message)
        yield self._frame(f"response.{status}", response=self._response(status, self._output(text), text))

    def _begin_message(self) -> Iterable[bytes]:
        self._message_index = self._next_index
        item = self._message("in_progress", [])
        yield self._frame("response.output_item.added", output_index=self._message_index, item=item)
        yield self._frame("response.content_part.added", **self._place, part=self._part("", [], []))

    @property
    def _next_index(self) -> int:
        return len(self._calls) + (self._message_index is not None)

    def _end_call(self, number: int, text: Text, status: Status) -> Iterable[bytes]:
        index, item_id, call = self._calls[number]
        arguments = text.calls[number].arguments
        kind = "response.function_call_arguments.done"
        yield self._frame(kind, item_id=item_id, output_index=index, name=call.name, arguments=arguments)
        item = self._call_item(number, arguments, status)
        yield self._frame("response.output_item.done", output_index=index, item=item)

    def _call_item(self, number: int, arguments: str, status: Status) -> OutputCall:
        _, item_id, call = self._calls[number]
        return OutputCall(
            type="function_call", id=item_id, call_id=call.id, name=call.name, arguments=arguments, status=status
        )

    def _output(self, text: Text) -> list[OutputMessage | OutputCall]:
        """Return the items of the whole output, in the order in which a stream has them."""
        status = self._status(text)
        if not self.order.stream:  # no piece was seen
            if text.text or not text.calls:
                self._message_index = 0
            for number, call in enumerate(text.calls):
                self._calls.append((self._next_index, new_id("fc_"), CallBegin(number, call.id, call.name)))
        last = len(text.calls) - 1
        calls: list[tuple[int, OutputMessage | OutputCall]] = [
            (self._calls[n][0], self._call_item(n, call.arguments, status if n == last else "completed"))
            for n, call in enumerate(text.calls)
        ]
        if self._message_index is not None:
            part = self._part(text.text, text.scored, text.records)
            calls.append((self._message_index, self._message(status, [part])))
        return [item for _, item in sorted(calls, key=lambda one: one[0])]

    def failed(self, error: ServeError) -> Iterable[bytes]:
        """Return the error."""
        yield self._frame("error", code=error.code or error.kind, message=error.message, param=error.param)

    def whole(self, texts: Sequence[Text]) -> Response:
        """Return the answer that does not stream."""
        text = texts[0]
        return self._response(self._status(text), self._output(text), text)

    @staticmethod
    def _status(text: Text) -> Literal["completed", "incomplete"]:
        assert text.end is not None
        return "incomplete" if text.end.reason == "length" else "completed"

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.message_id, "output_index": self._message_index, "content_index": 0}

    def _logprobs(self, scored: Sequence[ScoredToken]) -> list[dict[str, Any]]:
        return [chosen(one).model_dump() for one in scored]

    def _part(self, text: str, scored: Sequence[ScoredToken], records: Sequence[Any]) -> OutputText:
        fields: dict[str, Any] = {"compute": list(records)} if self.order.details else {}
        logprobs = self._logprobs(scored)
        return OutputText(type="output_text", text=text, annotations=[], logprobs=logprobs, **fields)

    def _message(self, status: Status, content: list[OutputText]) -> OutputMessage:
        return OutputMessage(type="message", id=self.message_id, status=status, role="assistant", content=content)

    def _response(self, status: Status, output: list[OutputMessage | OutputCall], text: Text | None) -> Response:
        body = self.body
        wanted = body.text.format if body.text else None
        return Response(
            id=self.id,
            object="response",
            created_at=self.created,
            status=status,
            error=None,
            incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            model=self.order.name,
            output=output,
            parallel_tool_calls=self.order.new_parser is not None and self.order.most_calls is None,
            previous_response_id=None,
            temperature=body.temperature,
            text={"format": {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True)},
            tool_choice="auto" if body.tool_choice is None else plain(body.tool_choice),
            tools=[plain(tool) for tool in body.tools or []],
            top_p=body.top_p,
            usage=None if text is None else self._usage(text),
        )

    def _usage(self, text: Text) -> ResponseUsage:
        assert text.end is not None
        prompt, new = prompt_tokens(self.order), len(text.ids)
        return ResponseUsage(
            input_tokens=prompt,
            input_tokens_details=CachedTokens(cached_tokens=text.end.cached_tokens),
            output_tokens=new,
            output_tokens_details=ReasoningTokens(reasoning_tokens=0),
            total_tokens=prompt + new,
            compute=text.compute.usage(),
        )

    def _frame(self, kind: str, **fields: Any) -> bytes:
        content = {name: plain(value) for name, value in fields.items()}
        number, self._number = self._number, self._number + 1
        return frame({"type": kind, "sequence_number": number, **content}, kind)
