"""A model without weights: its names, shapes and buffers, for programs that read weights one tensor at a time."""

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from .config.model import ModelConfig
from .transformer import Transformer


def hollow(config: ModelConfig) -> Transformer:
    """Build the model with its parameters on the meta device, where they take no memory; its buffers are real."""

    def discard(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # leave it: a tied one has been replaced already
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(discard)  # type: ignore[arg-type]  # its result counts
    try:
        return Transformer(config).eval()
    finally:
        hook.remove()
