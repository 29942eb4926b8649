"""The feed-forward part of a block: a mixture of SwiGLU experts, or one dense SwiGLU.

N tokens, D width, E experts, F hidden.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .experts import run_experts
from .linear import Linear
from .router import Router, Routes


class DenseFFN(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): y = (silu(x Wg) * (x Wu)) Wd."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up = Linear(dim, 2 * hidden_dim)  # (2F, D), gate first
        self.down = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (..., D) -> (..., D)."""
        gate, up = self.gate_up(x).chunk(2, -1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class MoE(nn.Module):
    """A mixture of SwiGLU experts.

        y = sum over selected e of g_e E_e(x), plus the shared expert where there is one

    Source: Huang et al. 2024 (arXiv 2403.07652), eq. 1; the shared expert as in DeepSeekMoE (arXiv 2401.06066).
    """

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        ffn = config.ffn
        self.router = Router(config.dim, ffn, layer, config.num_layers)
        self.gate_up = nn.Parameter(torch.empty(ffn.num_experts, config.dim, 2 * ffn.expert_dim))  # (E, D, 2F)
        self.down = nn.Parameter(torch.empty(ffn.num_experts, ffn.expert_dim, config.dim))  # (E, F, D)
        self.shared = DenseFFN(config.dim, ffn.shared_expert_dim) if ffn.shared_expert_dim else None
        self.onednn = False  # as in Linear
        self.run_experts: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], Tensor] = run_experts
        """Replaced where experts are on several ranks, to send tokens to them (`train/parallel/token_dispatch.py`)."""

    def forward(self, x: Tensor, runs: Tensor, router_top_p: Tensor) -> tuple[Tensor, Routes]:
        """Run the experts of each token: -> (N, D) and its routes.

        Args:
            x: (N, D), normed.
            runs: (N,) bool, the tokens that run this layer.
            router_top_p: (), the level of the router.
        """
        routes = self.router(x, router_top_p)
        routes = routes._replace(selected_experts=routes.selected_experts & runs[:, None])
        out = self.run_experts(x, routes.routing_weights, routes.selected_experts, self.gate_up, self.down, self.onednn)
        if self.shared is not None:
            out = out + self.shared(x)
        return out, routes
