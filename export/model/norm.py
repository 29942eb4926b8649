"""Normalisation of the hidden state. n tokens, D width. Mirrors `train/model/norm.py`."""

from ...train.model.config.model import ModelConfig
from ..graph.builder import Graph


def state_norm(g: Graph, config: ModelConfig, x: str, parameters: tuple[str, ...], name: str) -> str:
    """Normalise x (n, D) by RMSNorm or LayerNorm, with its weight and, of LayerNorm, its bias."""
    operator = "LayerNormalization" if config.norm == "layer" else "RMSNormalization"
    return g.op(operator, x, *parameters, axis=-1, epsilon=config.norm_eps, name=name)


def parameters_of(config: ModelConfig, name: str) -> tuple[str, ...]:
    """Return the names of the weight of a norm and, of LayerNorm, of its bias."""
    return tuple(f"{name}.{part}" for part in (("weight", "bias") if config.norm == "layer" else ("weight",)))
