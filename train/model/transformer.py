"""The language model. B batch, T time, N = B*T tokens, D width, L layers, E experts, V vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import rotary_tables
from .block import Block, LayerRouting
from .config import ModelConfig
from .initialize import initialize
from .norm import RMSNorm


class Thresholds(NamedTuple):
    """One value a layer, each (L,) float32."""

    router_top_p: Tensor
    depth_threshold: Tensor
    exit_threshold: Tensor  # 1: nobody leaves


class ModelOutput(NamedTuple):
    logits: Tensor  # (B, T, V)
    routing: list[LayerRouting]  # L of them
    exit_hidden: dict[int, Tensor]  # exit layer -> normed state after it (B, T, D)
    exit_probs: dict[int, Tensor]  # exit layer -> highest probability (B, T) float32; empty where nobody can leave
    exit_layer: Tensor  # (B, T) int64: the last layer run by a token that left early, else -1

    def usage(self, counted: Tensor | None = None) -> dict[str, Tensor]:
        """Means over the tokens that count (B, T) or all, () float32: experts per token and layer run, layers run."""
        runs = torch.stack([layer.runs for layer in self.routing])  # (L, N)
        used = [layer.routes.selected_experts.sum(-1) if layer.routes else layer.runs for layer in self.routing]
        shown = torch.ones_like(runs[0]) if counted is None else counted.flatten()
        layers = (runs & shown).sum()
        return {
            "experts_per_token": (torch.stack(used) * shown).sum() / layers,
            "layers_per_token": layers / shown.sum(),
        }


class Transformer(nn.Module):
    """A decoder whose tokens choose experts and layers. Weights are drawn from torch's global generator."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.vocab_size:
            raise ValueError("vocab_size is 0: fill it from the tokenizer before building the model")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialize(self)

    def forward(
        self, ids: Tensor, thresholds: Thresholds | None = None, checkpoint_activations: bool = False
    ) -> ModelOutput:
        """ids (B, T) int64 -> ModelOutput. Without `thresholds`, those of the controllers, and nobody leaves early.

        Raises:
            ValueError: the sequence is longer than the context.
        """
        time = ids.shape[1]
        if time > self.config.context_length:
            raise ValueError(f"a sequence of {time} tokens does not fit the context of {self.config.context_length}")
        leaves = thresholds is not None
        limits = thresholds or self.default_thresholds()
        rotary = (self.cos[:time], self.sin[:time])
        x = self.embedding(ids)  # (B, T, D)
        alive = torch.ones_like(ids, dtype=torch.bool)
        exit_layer = torch.full_like(ids, -1)
        routing, exit_hidden, exit_probs = [], {}, {}
        for i, block in enumerate(self.layers):
            arguments = (x, alive, rotary, limits.router_top_p[i], limits.depth_threshold[i])
            if checkpoint_activations and self.training:
                x, layer = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x, layer = block(*arguments)
            routing.append(layer)
            if i in self.config.depth.exit_layers:
                exit_hidden[i] = self.norm(x)
                if leaves:
                    exit_probs[i] = self.head(exit_hidden[i]).float().softmax(-1).amax(-1)  # (B, T)
                    exits = alive & (exit_probs[i] > limits.exit_threshold[i])
                    exit_layer = torch.where(exits, i, exit_layer)
                    alive = alive & ~exits
        return ModelOutput(self.head(self.norm(x)), routing, exit_hidden, exit_probs, exit_layer)

    def default_thresholds(self) -> Thresholds:
        """What the controllers hold now, and no early exit: the thresholds of training and of an exported model."""
        ones = torch.ones(self.config.num_layers, device=self.cos.device)
        top_p = [b.moe.router.default_top_p() if b.moe is not None else ones[0] for b in self.blocks()]
        depth = [
            b.depth_router.default_threshold() if b.depth_router is not None else 0 * ones[0] for b in self.blocks()
        ]
        return Thresholds(torch.stack(top_p), torch.stack(depth), ones)

    @torch.no_grad()
    def observe(self, out: ModelOutput, counted: Tensor | None = None) -> None:
        """Shows the controllers what a batch scored; call once after each training batch, never in evaluation.

        `counted` (B, T) bool leaves out the others, padding above all; None counts every token.
        """
        for block, layer in zip(self.blocks(), out.routing, strict=True):
            shown = torch.ones_like(layer.runs) if counted is None else counted.flatten()
            if layer.depth_scores is not None and block.depth_router is not None:
                block.depth_router.controller.observe(layer.depth_scores[shown])
            if layer.routes is not None and block.moe is not None:
                block.moe.router.observe(layer.routes.mass_before[layer.runs & shown])

    def compile_blocks(self) -> None:
        """Compiles each block without a graph break; blocks of one shape share their code."""
        for block in self.layers:
            block.compile(fullgraph=True, dynamic=False)

    def blocks(self) -> list[Block]:
        return [block for block in self.layers if isinstance(block, Block)]
