"""`POST /tokenize` and `POST /detokenize`, in the shapes of llama.cpp's server."""

from typing import Annotated

from pydantic import Field

from ..body import Body


class TokenizeBody(Body):
    """The body of `POST /tokenize`."""

    content: str
    """The text; special tokens in it are read as the characters they are."""
    model: str | None = None


class Tokens(Body):
    """The ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int
    """The most tokens of prompt and text together."""


class DetokenizeBody(Body):
    """The body of `POST /detokenize`."""

    tokens: Annotated[list[int], Field(max_length=1_000_000)]
    model: str | None = None


class Content(Body):
    """The text of ids, without special tokens."""

    content: str
