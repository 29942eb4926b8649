"""The activation of the feed-forward part, by the name that it has in config.json."""

from .settings import Settings, missing_feature

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Activation in config.json -> ours."""


def activation_of(settings: Settings, field: str, default: str) -> str:
    """Read our name of the activation from a field.

    Raises:
        UnsupportedModelError: The model has another activation.
    """
    name = settings.text(field, default)
    if name not in ACTIVATIONS:
        raise missing_feature(settings.place, field, name, "such activation")
    return ACTIVATIONS[name]
