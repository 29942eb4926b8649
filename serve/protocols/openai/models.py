"""`GET /v1/models`."""

from collections.abc import Sequence
from typing import Literal

from ...scheduler.job import ModelInfo
from ..body import Body
from ..names import listed_names


class Model(Body):
    """A model, or one of its named dials."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    """Not of OpenAI: the most tokens of prompt and text together."""


class ModelList(Body):
    """All models."""

    object: Literal["list"]
    data: list[Model]


def model_list(models: Sequence[ModelInfo]) -> ModelList:
    """List the models and their named dials, the default model first."""
    return ModelList(object="list", data=[describe(model, name) for model in models for name in listed_names(model)])


def describe(model: ModelInfo, name: str) -> Model:
    """Describe a model under one of its names."""
    return Model(id=name, object="model", created=model.created, owned_by="adaptive", max_model_len=model.context)
