"""`/tokenize`, `/detokenize` and `/tokenizer_info`, in the shapes of llama.cpp's server and of vLLM's."""

from typing import Annotated

from pydantic import Field, model_validator

from ..body import Body


class TokenizeBody(Body):
    """The body of `POST /tokenize`."""

    content: str | None = None
    """The text, in llama.cpp's shape; special tokens in it are read as the characters they are."""
    prompt: str | None = None
    """The text, in vLLM's shape; special tokens that it spells out are those tokens."""
    add_special_tokens: bool | None = None
    """Whether the token that begins a text is added, if the model has one."""
    model: str | None = None

    @model_validator(mode="after")
    def _one_text(self) -> "TokenizeBody":
        if (self.content is None) == (self.prompt is None):
            which = "neither" if self.content is None else "both"
            raise ValueError(f"found {which} of content and prompt, expected one of them; send the text as content")
        return self


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
    """The text of ids, without special tokens, by the names of both servers."""

    content: str
    prompt: str


class TokenizerInfo(Body):
    """What a client needs to know of the first model's tokenizer."""

    size: int
    """Token ids, 0 to this number less one."""
    bos_token: str | None
    eos_token: str | None
    add_bos_token: bool
    """Whether a prompt without a template begins with `bos_token`."""
    chat_template: str | None
