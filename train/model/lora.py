"""Low-rank adapters of linear layers.

p parts of a matrix (keys and values, gate and up), r rank, I inputs, O outputs.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config.lora import LoraConfig
from .config.model import ModelConfig
from .experts.moe import MoE
from .hollow import hollow
from .linear import Linear
from .transformer import Transformer

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "q": ("attention.q",),
    "kv": ("attention.kv",),
    "o": ("attention.o",),
    "ffn": (".gate_up", ".up", ".down"),
}
"""Target -> ends of the names of its layers."""
ADAPTER = ".adapter."


class Adapter(nn.Module):
    """Compute scale B A x for each part of a matrix: A (p, r, I), B (p, O / p, r).

    At the start B is 0, so that the layer computes what it did. Source: Hu et al. 2021 (arXiv 2106.09685).
    """

    def __init__(self, inputs: int, outputs: int, parts: int, config: LoraConfig) -> None:
        super().__init__()
        self.scale, self.dropout = config.scale, config.dropout
        self.a = nn.Parameter(torch.empty(parts, config.rank, inputs).uniform_(-(inputs**-0.5), inputs**-0.5))
        self.b = nn.Parameter(torch.zeros(parts, outputs // parts, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the output of the layer: x (..., I) -> (..., O)."""
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        inner = F.linear(x, self.a.flatten(0, 1))  # (..., p r)
        parts = inner.chunk(len(self.a), -1)  # p of (..., r)
        out = torch.cat([F.linear(part, b) for part, b in zip(parts, self.b, strict=True)], -1)
        return self.scale * out


def delta(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return what an adapter adds to its matrix, (O, I) float32."""
    return scale * (b.float() @ a.float()).flatten(0, 1)


def targets_of(model: nn.Module, config: LoraConfig) -> Iterator[tuple[str, Linear]]:
    """Yield the layers that have adapters, by name."""
    ends = tuple(end for target in config.targets for end in SUFFIXES[target])
    for name, module in model.named_modules():
        if isinstance(module, Linear) and name.startswith("layers.") and name.endswith(ends):
            yield name, module


def parts_of(name: str) -> int:
    """Return the number of matrices that a layer joins: two for keys and values, and for gate and up."""
    return 2 if name.endswith((".kv", ".gate_up")) else 1


def add_adapters(model: Transformer, config: LoraConfig) -> None:
    """Freeze every weight of the model, and give the layers of `config` adapters with weights from torch's generator.

    Raises:
        ValueError: A target names layers that the model does not have.
    """
    for target in config.targets:
        if not any(True for _ in targets_of(model, config.model_copy(update={"targets": (target,)}))):
            raise ValueError(f"lora.targets names {target}, but no layer has such a matrix: leave {target} out")
    model.requires_grad_(False)
    for name, layer in targets_of(model, config):
        layer.adapter = Adapter(layer.in_features, layer.out_features, parts_of(name), config)


def adapted(config: ModelConfig, lora: LoraConfig, base: Mapping[str, Tensor], device: torch.device) -> Transformer:
    """Build a model of frozen weights with adapters.

    Matrices stay in the dtype of `base`, and mapped where it maps them; vectors and routers become float32.

    Args:
        config: The model.
        lora: Its adapters.
        base: The frozen weights, by name.
        device: Where the model computes.

    Raises:
        KeyError: A weight is missing.
        ValueError: A target names layers that the model does not have.
    """
    model = hollow(config)
    matrices = {id(weight) for weight in _matrices(model)}
    loaded: dict[int, nn.Parameter] = {}
    for name, value in model.named_parameters():  # a tied matrix once
        tensor = base[name].to(device)
        tensor = tensor if id(value) in matrices else tensor.float()
        loaded[id(value)] = nn.Parameter(tensor, requires_grad=False)
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, loaded[id(value)])
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in base:
                buffer.copy_(base[name])
    add_adapters(model, lora)
    return model.to(device).train()


def _matrices(model: Transformer) -> Iterator[Tensor]:
    """Yield the weights whose layers compute with any dtype: of linear layers, the embedding, and stacks of experts."""
    yield model.embedding.weight
    for module in model.modules():
        if isinstance(module, Linear):
            yield module.weight
        elif isinstance(module, MoE):
            yield module.stack()
            yield module.down


def merged(name: str, base: Callable[[], Tensor], own: Mapping[str, Tensor], lora: LoraConfig) -> Tensor:
    """Return a weight with its adapter added in float32, or as it is where it has none."""
    stem = name.removesuffix(".weight") + ADAPTER
    if name.endswith(".weight") and f"{stem}a" in own:
        return base().float() + delta(own[f"{stem}a"], own[f"{stem}b"], lora.scale)
    return base()
