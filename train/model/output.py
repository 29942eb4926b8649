"""The output of a forward pass and the thresholds it ran at. B batch, T time, N = B*T tokens, D width, L layers."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..system.collectives import total
from .block import LayerRouting


class ThresholdTensors(NamedTuple):
    """The thresholds of a model, one value per layer, each (L,) float32."""

    router_top_p: Tensor
    depth_threshold: Tensor
    exit_threshold: Tensor  # 1: no token leaves
    head_top_p: Tensor
    router_ratio: Tensor | None = None  # of routers with `most_experts`; None: 0 in every layer

    def given(self) -> dict[str, Tensor]:
        """Return the thresholds by name, without those that are None."""
        return {name: levels for name, levels in self._asdict().items() if levels is not None}


class ModelOutput(NamedTuple):
    """The output of a forward pass, and all its decisions."""

    logits: Tensor  # (B, T, V)
    routing: list[LayerRouting]  # L of them
    exit_hidden: dict[int, Tensor]  # exit layer -> normed state after it (B, T, D)
    exit_confidence: dict[int, Tensor]  # exit layer -> confidence (B, T) float32; empty where no token can leave
    exit_layer: Tensor  # (B, T) int64: the last layer run by a token that left early, else -1
    hidden: Tensor  # (B, T, D): normed state after the last layer; of a token that left, its frozen one
    residual_rms: tuple[Tensor, ...] = ()  # L of (): root mean square of x after each block, if asked for
    layer_states: tuple[Tensor, ...] = ()  # x (B, T, D) after the blocks that were asked for, in their order

    def usage(self, counted: Tensor | None = None) -> dict[str, Tensor]:
        """Return the average use per token, each () float32.

        Experts, zero-computation experts, heads and window are per layer that the token runs, and only where they are
        chosen.

        Args:
            counted: (B, T) bool, the tokens to average over; None for all.
        """
        runs = torch.stack([layer.runs for layer in self.routing])  # (L, N)
        shown = torch.ones_like(runs[0]) if counted is None else counted.flatten()
        layers, tokens = total((runs & shown).sum(), shown.sum())

        def mean(used: list[Tensor], among: Tensor) -> Tensor:
            return total((torch.stack(used) * shown).sum())[0] / among

        experts = [layer.routes.selected_experts.sum(-1) if layer.routes else layer.runs for layer in self.routing]
        averages = {"experts_per_token": mean(experts, layers), "layers_per_token": layers / tokens}
        zero = [layer.routes.zero.selected.sum(-1) for layer in self.routing if layer.routes and layer.routes.zero]
        if zero:
            averages["zero_experts_per_token"] = mean(zero, layers)
        heads = [layer.heads.selected_heads.sum(-1) for layer in self.routing if layer.heads]
        if heads:
            choosing = torch.stack([layer.runs for layer in self.routing if layer.heads])
            averages["heads_per_token"] = mean(heads, total((choosing & shown).sum())[0])
        windowed = [layer for layer in self.routing if layer.windows]
        if windowed:
            sizes = [layer.windows.sizes for layer in windowed if layer.windows]
            averages["window"] = mean(sizes, total((torch.stack([layer.runs for layer in windowed]) & shown).sum())[0])
        return averages
