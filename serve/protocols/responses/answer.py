"""Answers to `POST /v1/responses`."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from ...errors import ServeError
from ..answer import frame, new_id, now, prompt_tokens
from ..body import Body
from ..openai.chat_answer import chosen
from ..order import Order
from ..ours.compute import ComputeUsage
from ..text import Piece, ScoredToken, Text
from .body import ResponsesBody


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
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


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
    status: Literal["in_progress", "completed", "incomplete"]
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str
    tools: list[Any]
    top_p: float | None
    usage: ResponseUsage | None


class ResponsesAnswer:
    """Writes the answer to a response."""

    def __init__(self, order: Order, body: ResponsesBody) -> None:
        self.order, self.body = order, body
        self.id, self.message_id = new_id("resp_"), new_id("msg_")
        self.created = now()
        self._number = 0

    def begin(self) -> Iterable[bytes]:
        """Return the start of the response, of its message and of its only part."""
        for kind in ("response.created", "response.in_progress"):
            yield self._frame(kind, response=self._response("in_progress", [], None))
        yield self._frame("response.output_item.added", output_index=0, item=self._message("in_progress", []))
        yield self._frame("response.content_part.added", **self._place, part=self._part("", [], []))

    def piece(self, piece: Piece, text: Text) -> Iterable[bytes]:
        """Return the new text."""
        if piece.text or piece.records or piece.scored:
            fields: dict[str, Any] = {"compute": list(piece.records)} if piece.records else {}
            logprobs = self._logprobs(piece.scored)
            yield self._frame(
                "response.output_text.delta", **self._place, delta=piece.text, logprobs=logprobs, **fields
            )

    def finish(self, texts: Sequence[Text]) -> Iterable[bytes]:
        """Return the end of the part, of the message and of the response."""
        text = texts[0]
        status = self._status(text)
        part = self._part(text.text, text.scored, text.records)
        message = self._message(status, [part])
        logprobs = self._logprobs(text.scored)
        yield self._frame("response.output_text.done", **self._place, text=text.text, logprobs=logprobs)
        yield self._frame("response.content_part.done", **self._place, part=part)
        yield self._frame("response.output_item.done", output_index=0, item=message)
        yield self._frame(f"response.{status}", response=self._response(status, [message], text))

    def failed(self, error: ServeError) -> Iterable[bytes]:
        """Return the error."""
        yield self._frame("error", code=error.code or error.kind, message=error.message, param=error.param)

    def whole(self, texts: Sequence[Text]) -> Response:
        """Return the answer that does not stream."""
        text = texts[0]
        status = self._status(text)
        part = self._part(text.text, text.scored, text.records)
        return self._response(status, [self._message(status, [part])], text)

    @staticmethod
    def _status(text: Text) -> Literal["completed", "incomplete"]:
        assert text.end is not None
        return "incomplete" if text.end.reason == "length" else "completed"

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.message_id, "output_index": 0, "content_index": 0}

    def _logprobs(self, scored: Sequence[ScoredToken]) -> list[dict[str, Any]]:
        return [chosen(one).model_dump() for one in scored]

    def _part(self, text: str, scored: Sequence[ScoredToken], records: Sequence[Any]) -> OutputText:
        fields: dict[str, Any] = {"compute": list(records)} if self.order.details else {}
        logprobs = self._logprobs(scored)
        return OutputText(type="output_text", text=text, annotations=[], logprobs=logprobs, **fields)

    def _message(
        self, status: Literal["in_progress", "completed", "incomplete"], content: list[OutputText]
    ) -> OutputMessage:
        return OutputMessage(type="message", id=self.message_id, status=status, role="assistant", content=content)

    def _response(
        self, status: Literal["in_progress", "completed", "incomplete"], output: list[OutputMessage], text: Text | None
    ) -> Response:
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
            parallel_tool_calls=False,
            previous_response_id=None,
            temperature=body.temperature,
            text={"format": {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True)},
            tool_choice="auto",
            tools=[],
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
        plain = {
            name: value.model_dump(exclude_unset=True) if isinstance(value, Body) else value
            for name, value in fields.items()
        }
        number, self._number = self._number, self._number + 1
        return frame({"type": kind, "sequence_number": number, **plain}, kind)
