"""`POST /v1/embeddings`: the mean of the last hidden states of a text."""

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from ..body import Body

Ids = Annotated[list[int], Field(min_length=1)]


class EmbeddingBody(Body):
    """The body of `POST /v1/embeddings`."""

    model: str | None = None
    input: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=128)]
        | Annotated[list[Ids], Field(min_length=1, max_length=128)]
    )
    """A text, ids of tokens, or a list of either."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    """Only the width of the model."""

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The texts, one or more."""
        value = self.input
        if isinstance(value, str):
            return [value]
        return [value] if isinstance(value[0], int) else value


class Embedding(Body):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Body):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Body):
    """The whole answer."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def embedding_list(body: EmbeddingBody, name: str, vectors: Sequence[Sequence[float]], tokens: int) -> EmbeddingList:
    """Write vectors as numbers, or as base64 of float32."""

    def written(vector: Sequence[float]) -> list[float] | str:
        if body.encoding_format == "base64":
            return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        return list(vector)

    data = [Embedding(object="embedding", index=i, embedding=written(one)) for i, one in enumerate(vectors)]
    return EmbeddingList(
        object="list", data=data, model=name, usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    )
