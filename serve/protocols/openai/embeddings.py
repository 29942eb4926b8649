"""`POST /v1/embeddings`: the mean of the last hidden states of a text."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...scheduler.job import Job, ModelInfo
from ..body import Body
from ..ours.compute import ComputeFields

Ids = Annotated[list[int], Field(min_length=1)]
MOST_INPUTS = 2048
"""Texts of one request, as many as OpenAI takes."""


class EmbeddingBody(ComputeFields):
    """The body of `POST /v1/embeddings`."""

    model: str | None = None
    """A name from `GET /v1/models`; the first of them if left out."""
    input: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST_INPUTS)]
    )
    """A text, ids of tokens, or a list of either."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64 is that of the float32 numbers, little-endian."""
    dimensions: int | None = None
    """Only the width of the model: its vectors cannot be cut."""

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


@dataclass(frozen=True, kw_only=True)
class EmbeddingOrder:
    """The jobs of one request, one for each text, and how its answer is written."""

    model: ModelInfo
    name: str
    """The model's name as the client wrote it."""
    jobs: Sequence[Job]
    base64: bool = False
    ignored: Sequence[str] = ()
    """Fields of the body without effect."""


def embedding_list(order: EmbeddingOrder, vectors: Sequence[NDArray[np.float32]]) -> EmbeddingList:
    """Write vectors as numbers, or as base64 of float32."""

    def written(vector: NDArray[np.float32]) -> list[float] | str:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if order.base64 else vector.tolist()

    data = [Embedding(object="embedding", index=i, embedding=written(one)) for i, one in enumerate(vectors)]
    tokens = sum(len(job.prompt) for job in order.jobs)
    return EmbeddingList(
        object="list", data=data, model=order.name, usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    )
