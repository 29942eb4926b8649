"""Peers for the benchmarks of training: plain GPT-2 blocks, and models of the transformers library.

B batch, T time, V vocabulary.
"""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Shape(NamedTuple):
    """The sizes that all models of a comparison share."""

    vocabulary: int
    length: int
    dim: int
    layers: int
    heads: int


class PlainGPT(nn.Module):
    """GPT-2's block as nanoGPT trains it: LayerNorm, GELU of width 4 D, learned positions, tied head, no biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim = shape.dim
        self.heads = shape.heads
        self.tokens, self.positions = nn.Embedding(shape.vocabulary, dim), nn.Embedding(shape.length, dim)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(dim, bias=False),
                    "qkv": nn.Linear(dim, 3 * dim, bias=False),
                    "out": nn.Linear(dim, dim, bias=False),
                    "norm2": nn.LayerNorm(dim, bias=False),
                    "up": nn.Linear(dim, 4 * dim, bias=False),
                    "down": nn.Linear(4 * dim, dim, bias=False),
                }
            )
            for _ in range(shape.layers)
        )
        self.norm = nn.LayerNorm(dim, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Run the model: ids (B, T) -> logits (B, T, V)."""
        batch, time_ = ids.shape
        x = self.tokens(ids) + self.positions.weight[:time_]
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            parts = block["qkv"](block["norm1"](x)).chunk(3, -1)
            q, k, v = (part.view(batch, time_, self.heads, -1).transpose(1, 2) for part in parts)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
            x = x + block["out"](attended)
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return F.linear(self.norm(x), self.tokens.weight)


def llama(shape: Shape, hidden: int) -> nn.Module:
    """Build the Llama of the transformers library with a hidden width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model: nn.Module = LlamaForCausalLM(LlamaConfig(**_shared(shape), intermediate_size=hidden))
    return model


def mixtral(shape: Shape, hidden: int, implementation: str) -> nn.Module:
    """Build the Mixtral of the transformers library, 2 of 8 experts of width `hidden`.

    `implementation` of the experts is `eager` or `grouped_mm`.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    untyped: Any = MixtralConfig  # its types lack some of its options
    config = untyped(
        **_shared(shape),
        intermediate_size=hidden,
        num_local_experts=8,
        num_experts_per_tok=2,
        output_router_logits=True,  # adds its load-balancing loss, as ours has
        experts_implementation=implementation,
    )
    model: nn.Module = MixtralForCausalLM(config)
    return model


def _shared(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "max_position_embeddings": shape.length,
        "use_cache": False,
    }
