"""DeepSeek-MoE v1 in plain torch, from its paper (arXiv 2401.06066), which transformers lacks.

It is the decoder of Llama with a mixture in all but the first layers: softmax scores, the k highest taken without
renormalising, and shared experts for every token.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from .folders import COMMON

SETTINGS: dict[str, Any] = {
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
}


class Mixture(torch.nn.Module):
    """The mixture of one layer; weights by the names of the published files."""

    def __init__(self, weights: dict[str, Tensor], prefix: str) -> None:
        super().__init__()
        self.weights, self.prefix = weights, prefix

    def expert(self, name: str, x: Tensor) -> Tensor:
        """Run one SwiGLU."""
        gate, up, down = (self.weights[f"{self.prefix}{name}.{one}_proj.weight"] for one in ("gate", "up", "down"))
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the chosen experts of each token and add the shared ones."""
        scores = F.linear(x, self.weights[f"{self.prefix}gate.weight"]).softmax(-1)
        chosen = scores.topk(SETTINGS["num_experts_per_tok"], -1)
        out = self.expert("shared_experts", x)
        for number in range(SETTINGS["n_routed_experts"]):
            weight = torch.where(chosen.indices == number, chosen.values, 0).sum(-1, keepdim=True)
            out = out + weight * self.expert(f"experts.{number}", x)
        return out


def write_deepseek(folder: Path) -> Any:
    """Write a tiny random model as its published files are, and return the model."""
    torch.manual_seed(0)
    llama = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **COMMON)).eval()
    state = {name: torch.randn_like(value) * value.shape[-1] ** -0.5 for name, value in llama.state_dict().items()}
    state |= {name: 1 + 0.2 * torch.randn_like(value) for name, value in state.items() if "norm" in name}
    llama.load_state_dict(state)
    dim, hidden = COMMON["hidden_size"], SETTINGS["moe_intermediate_size"]
    for layer in range(SETTINGS["first_k_dense_replace"], COMMON["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp."
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]
        experts = {f"experts.{number}": hidden for number in range(SETTINGS["n_routed_experts"])}
        experts["shared_experts"] = hidden * SETTINGS["n_shared_experts"]
        state[f"{prefix}gate.weight"] = torch.randn(SETTINGS["n_routed_experts"], dim) * 0.5
        for name, width in experts.items():
            for part, shape in (("gate", (width, dim)), ("up", (width, dim)), ("down", (dim, width))):
                state[f"{prefix}{name}.{part}_proj.weight"] = torch.randn(shape) * shape[1] ** -0.5
        llama.model.layers[layer].mlp = Mixture(state, prefix)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {**COMMON, **SETTINGS, "model_type": "deepseek", "architectures": ["DeepseekForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": llama.config.rms_norm_eps}))
    return llama
