"""The feed-forward part of a block: a mixture of experts, or one dense FFN.

N tokens, D width, E experts, F hidden. H is 2F where FFNs are gated (gate first), else F.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..activation import activate
from ..config.model import ModelConfig
from ..config.sections import FFNConfig
from ..linear import Linear
from ..routing.router import Router, Routes
from .experts import run_experts
from .form import ExpertForm
from .zero_experts import ZeroExperts


class DenseFFN(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): y = (silu(x Wg) * (x Wu)) Wd.

    Other activations take the place of silu; without a gate y = act(x Wu) Wd.
    """

    def __init__(self, dim: int, hidden_dim: int, config: FFNConfig) -> None:
        super().__init__()
        self.activation, self.gated, self.input = config.activation, config.gated, input_name(config)
        setattr(self, self.input, Linear(dim, hidden_dim * (1 + config.gated), config.bias))  # (H, D)
        self.down = Linear(hidden_dim, dim, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (..., D) -> (..., D)."""
        hidden: Tensor = getattr(self, self.input)(x)
        if self.gated:
            gate, up = hidden.chunk(2, -1)
            inner = activate(self.activation, gate) * up
        else:
            inner = activate(self.activation, hidden)
        out: Tensor = self.down(inner)
        return out


class MoE(nn.Module):
    """A mixture of experts.

        y = sum over selected e of g_e E_e(x), plus the shared expert where there is one, times its gate

    Among the E_e may be zero-computation experts. A token without any expert gets 0, plus the shared expert.

    Source: Huang et al. 2024 (arXiv 2403.07652), eq. 1; the shared expert as in DeepSeekMoE (arXiv 2401.06066), its
    gate as in Qwen2-MoE (arXiv 2407.10671).
    """

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        ffn = config.ffn
        experts, dim, hidden = ffn.num_experts, config.dim, ffn.expert_dim
        self.activation, self.gated = ffn.activation, ffn.gated
        self.input = input_name(ffn)
        self.router = Router(dim, ffn, layer, config.num_layers)
        gates = torch.empty(len(config.tasks), len(self.router.weight))  # (tasks, E)
        self.task_bias = nn.Parameter(gates) if ffn.task_bias else None
        both = hidden * (1 + ffn.gated)
        self.register_parameter(self.input, nn.Parameter(torch.empty(experts, dim, both)))  # (E, D, H)
        self.down = nn.Parameter(torch.empty(experts, hidden, dim))  # (E, F, D)
        self.register_parameter(f"{self.input}_bias", nn.Parameter(torch.empty(experts, both)) if ffn.bias else None)
        self.down_bias = nn.Parameter(torch.empty(experts, dim)) if ffn.bias else None
        self.shared = DenseFFN(dim, ffn.shared_expert_dim, ffn) if ffn.shared_expert_dim else None
        self.shared_gate = nn.Linear(dim, 1, bias=False) if ffn.shared_gate else None
        zero = ffn.zero_experts
        self.zero_experts = ZeroExperts(dim, zero) if zero.copies or zero.constants else None
        self.onednn = False  # as in Linear
        self.run_experts: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool, ExpertForm], Tensor] = run_experts
        """Replaced where experts are on several ranks, to send tokens to them (`train/parallel/token_dispatch.py`)."""

    def forward(
        self,
        x: Tensor,
        runs: Tensor,
        router_top_p: Tensor,
        router_ratio: Tensor | None = None,
        random_experts: Tensor | None = None,
        task: Tensor | None = None,
    ) -> tuple[Tensor, Routes]:
        """Run the experts of each token: -> (N, D) and its routes.

        Args:
            x: (N, D), normed.
            runs: (N,) bool, the tokens that run this layer.
            router_top_p: (), the level of the router.
            router_ratio: (), the least share of the first score; None for a router without `most_experts`.
            random_experts: (N,) int64, the experts that each token may run; None for all candidates.
            task: (N,) int64, the task of each token, where the router has gates per task; None adds no bias.
        """
        bias = None if self.task_bias is None or task is None else self.task_bias[task]
        routes = self.router(x, router_top_p, router_ratio, random_experts, bias)
        routes = routes._replace(selected_experts=routes.selected_experts & runs[:, None])
        if routes.zero is not None:
            routes = routes._replace(zero=routes.zero._replace(selected=routes.zero.selected & runs[:, None]))
        chosen = (routes.routing_weights, routes.selected_experts)
        out = self.run_experts(x, *chosen, self.stack(), self.down, self.onednn, self.form())
        if self.zero_experts is not None and routes.zero is not None:
            out = out + self.zero_experts(x, routes.zero.weights)
        if self.shared is not None:
            out = out + self._shared(x)
        return out, routes

    def stack(self) -> Tensor:
        """Return the first matrices of the experts, (E, D, H)."""
        weight: Tensor = getattr(self, self.input)
        return weight

    def form(self) -> ExpertForm:
        """Return activation, gate and biases of the experts."""
        return ExpertForm(self.activation, self.gated, getattr(self, f"{self.input}_bias"), self.down_bias)

    def stacks(self) -> list[str]:
        """Return the names of the parameters that have a part for each expert."""
        names = (self.input, "down", f"{self.input}_bias", "down_bias")
        return [name for name in names if getattr(self, name) is not None]

    def _shared(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        out: Tensor = self.shared(x)
        if self.shared_gate is not None:
            with torch.autocast(x.device.type, enabled=False):
                gate = nn.functional.linear(x.float(), self.shared_gate.weight.float()).sigmoid()  # (N, 1)
            out = out * gate.to(out.dtype)
        return out


def input_name(config: FFNConfig) -> str:
    """Return the name of the first matrix of an FFN: of gate and up together, or of up alone."""
    return "gate_up" if config.gated else "up"
