"""The table of endpoints: what the router serves, and what the OpenAPI document describes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ..protocols.anthropic.answer import MessageAnswer
from ..protocols.anthropic.messages import CountBody, MessagesBody, TokenCount
from ..protocols.body import Body
from ..protocols.openai.chat import ChatBody
from ..protocols.openai.chat_answer import ChatCompletion
from ..protocols.openai.completion_answer import Completion
from ..protocols.openai.completions import CompletionBody
from ..protocols.openai.embeddings import EmbeddingBody, EmbeddingList
from ..protocols.openai.models import Model, ModelList
from ..protocols.ours.props import Health, Props
from ..protocols.ours.texts import Content, DetokenizeBody, TokenizeBody, TokenizerInfo, Tokens
from ..protocols.responses.answer import Response as ResponsesAnswer
from ..protocols.responses.body import ResponsesBody
from ..routes import embeddings, generation, server, texts


@dataclass(frozen=True)
class Endpoint:
    """One address of the server."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    answer: type[Body]
    body: type[Body] | None = None
    public: bool = False
    """Whether it needs no key."""

    @property
    def streams(self) -> bool:
        """Whether it may answer as an event stream."""
        return self.body is not None and "stream" in self.body.model_fields


ENDPOINTS = (
    Endpoint("GET", "/v1/models", server.models, ModelList),
    Endpoint("GET", "/v1/models/{name:path}", server.one_model, Model),
    Endpoint("POST", "/v1/chat/completions", generation.chat_completions, ChatCompletion, ChatBody),
    Endpoint("POST", "/v1/completions", generation.completions, Completion, CompletionBody),
    Endpoint("POST", "/v1/responses", generation.responses, ResponsesAnswer, ResponsesBody),
    Endpoint("POST", "/v1/messages", generation.messages, MessageAnswer, MessagesBody),
    Endpoint("POST", "/v1/messages/count_tokens", texts.count_tokens, TokenCount, CountBody),
    Endpoint("POST", "/v1/embeddings", embeddings.embeddings, EmbeddingList, EmbeddingBody),
    Endpoint("POST", "/tokenize", texts.tokenize, Tokens, TokenizeBody),
    Endpoint("POST", "/detokenize", texts.detokenize, Content, DetokenizeBody),
    Endpoint("GET", "/tokenizer_info", texts.tokenizer_info, TokenizerInfo),
    Endpoint("GET", "/props", server.properties, Props),
    Endpoint("GET", "/health/live", server.live, Health, public=True),
    Endpoint("GET", "/health/ready", server.ready, Health, public=True),
)
