"""Every scale a model starts from, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .transformer import Transformer

ROUTER_STD = 0.02


def initialize(model: Transformer) -> None:
    """Draws every weight of `model` in place.

    Matrices that read the residual stream: normal, std 1 / sqrt(inputs), so that a normed input gives outputs of unit
    size. Those that write to it: the same divided by sqrt(2 L) and again by 8, nearly silent at the start yet with a
    gradient for every expert and head from the first step. Embedding and head: std 0.02 where they are tied, else the
    embedding has std 1 and the head is nearly silent. Routers: std 0.02, an even start; contextual positions the same.
    Norms 1, biases 0; learned levels start where the config puts them.
    """
    silent = 1 / (8 * (2 * model.config.num_layers) ** 0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name == "embedding.weight":
            nn.init.normal_(parameter, std=0.02 if model.config.tie_embeddings else 1.0)
        elif name == "head.weight":
            nn.init.normal_(parameter, std=0.1 * parameter.shape[1] ** -0.5)
        elif name.endswith("level_logit"):
            continue
        elif "router" in name or name.endswith("position_embedding"):
            nn.init.normal_(parameter, std=ROUTER_STD)
        else:
            assert parameter.ndim in (2, 3), name
            std = (
                parameter.shape[1] ** -0.5
            )  # inputs stand second, in (outputs, inputs) as in a stack (E, inputs, outputs)
            writes = name.endswith(("down", "down.weight", "o.weight"))
            nn.init.normal_(parameter, std=std * silent if writes else std)
