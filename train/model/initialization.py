"""The first values of all weights of the model. D width, E experts, L layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .transformer import Transformer

ROUTER_STD = 0.02
"""Standard deviation of the weights of routers, shared gates and contextual positions at the start."""


def initialize(model: Transformer) -> None:
    """Draw every weight of `model` in place.

    - Matrices that read the residual stream: normal, std 1 / sqrt(inputs), so that a normed input gives outputs of unit
      size.
    - Matrices that write to it: the same, divided by sqrt(2 L) and again by 8: nearly 0 at the start, yet with a
      gradient for every expert and head from the first step.
    - Norms of outputs, where there are any, have that factor in place of those matrices, whose scale they cancel.
    - Embedding and output head: std 0.02 if tied; else an embedded token of std 1, and an output head close to 0.
    - Learned positions: as large as an embedded token.
    - Routers, gates of shared experts, rows that mix constant experts, and contextual positions: std 0.02, so that
      routing starts even. The constants: nearly 0, as what writes to the residual stream.
    - Other norms 1, biases 0; learned levels start at the values of the config.
    - Parameters of mixers that set the decay and the like: see `draw` of each.
    """
    config = model.config
    mixers = {f"layers.{i}.mixer": block.mixer for i, block in enumerate(model.blocks()) if block.mixer is not None}
    drawn = {f"{name}.{parameter}" for name, mixer in mixers.items() for parameter in mixer.drawn}
    silent = 1 / (8 * (2 * config.num_layers) ** 0.5)
    embedded = 0.02 * config.embedding_scale if config.tie_embeddings else 1.0
    for name, parameter in model.named_parameters():
        if name in drawn:
            continue
        if name.endswith("post_norm.weight"):
            nn.init.constant_(parameter, silent)
        elif name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name == "embedding.weight":
            nn.init.normal_(parameter, std=embedded / config.embedding_scale)
        elif name == "learned_positions":
            nn.init.normal_(parameter, std=embedded)
        elif name == "head.weight":
            nn.init.normal_(parameter, std=0.1 * parameter.shape[1] ** -0.5)
        elif name.endswith("level_logit"):
            continue
        elif "router" in name or name.endswith(("position_embedding", "shared_gate.weight", "zero_experts.mix")):
            nn.init.normal_(parameter, std=ROUTER_STD)
        elif name.endswith("zero_experts.constants"):
            nn.init.normal_(parameter, std=silent)
        else:
            assert parameter.ndim in (2, 3), name
            # the inputs are axis 1, of (outputs, inputs) and of a stack (E, inputs, outputs)
            std = parameter.shape[1] ** -0.5
            writes = name.endswith(("down", "down.weight", "o.weight"))
            nn.init.normal_(parameter, std=std * silent if writes and not config.has_norms_after else std)
    for mixer in mixers.values():
        mixer.draw()
