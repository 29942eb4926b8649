"""The torch model of a checkpoint, which may be larger than memory.

A model of up to RESIDENT bytes in float32 is loaded whole. Of a larger one only vectors and buffers are: the matrices
of a layer are read and widened to float32 when the layer runs, and freed afterwards; rows of the embedding and of the
output head likewise. The numbers that it computes with are the same.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..train.model import ModelConfig, Transformer
from ..train.model.hollow import hollow
from ..train.model.linear import linear
from .graph.builder import Array
from .graph.weights import is_matrix

RESIDENT = 2**28
"""Most bytes of float32 weights that stay in memory: a check holds three copies, two of them rounded."""
ROWS = 2**26
"""Bytes in float32 of the rows of embedding or output head that are in memory at a time."""
Rounding = Callable[[str, Array, slice | Array], Array]
"""Rounds rows of a matrix of that name, (..., O, I): those of a slice or of these numbers; of experts all."""


def load(config: ModelConfig, tensors: Mapping[str, Tensor], rounding: Rounding | None = None) -> Transformer:
    """Return the model, in eval mode and without gradients.

    Args:
        config: The model.
        tensors: Its state by name; it is read again by each pass of a model that does not stay in memory.
        rounding: Rounds each matrix; None leaves them as they are.

    Raises:
        ValueError: A tensor is missing, left over, or of another shape.
    """
    model = hollow(config)
    _require_fitting(model, tensors)
    parameters = dict(model.named_parameters())  # a tied matrix once
    resident = 4 * sum(value.numel() for value in parameters.values()) <= RESIDENT
    whole = {name: value for name, value in parameters.items() if resident or not _is_large(name, value)}
    buffers = {name: tensors[name] for name in model.state_dict() if name not in parameters and name in tensors}
    buffers = {name: value for name, value in buffers.items() if name != "head.weight"}  # tied
    model.load_state_dict(buffers, strict=False)
    loaded = {id(value): _parameter(name, tensors[name], rounding) for name, value in whole.items()}
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if id(value) in loaded:
                setattr(module, name, loaded[id(value)])
    if not resident:
        _stream(model, tensors, rounding)
    return model


def is_streamed(model: Transformer) -> bool:
    """Return whether the matrices of a model are read when it runs."""
    return model.embedding.weight.is_meta


def copy_with_rounding(model: Transformer, tensors: Mapping[str, Tensor], rounding: Rounding) -> Transformer:
    """Return a streamed model with its matrices rounded, and everything else as in `model`."""
    other = load(model.config, tensors, rounding)
    other.load_state_dict(dict(model.named_buffers()), strict=False)
    return other


def _is_large(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix of a layer, the embedding or the output head."""
    in_parts = name in ("embedding.weight", "head.weight") or name.startswith("layers.")
    return in_parts and is_matrix(name, parameter.ndim)


def _require_fitting(model: Transformer, tensors: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(f"the checkpoint lacks {missing or 'nothing'} and has {unknown or 'nothing'} too many")
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise ValueError(f"{name} is {list(tensors[name].shape)}, its model has {list(value.shape)}")


def _parameter(name: str, tensor: Tensor, rounding: Rounding | None) -> nn.Parameter:
    """Read a tensor into memory, in float32."""
    value = torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor)  # its own memory, aligned
    if rounding is not None and is_matrix(name, value.ndim):
        matrix = value if value.ndim == 2 else value.mT  # (..., O, I)
        matrix.copy_(torch.from_numpy(rounding(name, matrix.numpy(), slice(None))))
    return nn.Parameter(value, requires_grad=False)


def _stream(model: Transformer, tensors: Mapping[str, Tensor], rounding: Rounding | None) -> None:
    """Read the matrices of each layer when it runs, and rows of embedding and output head as they are needed."""
    for i, block in enumerate(model.blocks()):
        modules: dict[str, nn.Module] = {f"layers.{i}": block}
        if block.source is not None:
            modules[f"layers.{model.config.recursion.source_of(i)}"] = block.source[0]
        _stream_layer(block, modules, tensors, rounding)
    embedding, head = model.embedding, model.head
    tied = head.weight is embedding.weight

    def rows(name: str, at: slice | Array) -> Tensor:
        values = tensors[name][at].float()
        return values if rounding is None else torch.from_numpy(rounding(name, values.numpy(), at))

    def embed(ids: Tensor) -> Tensor:
        different, place = torch.unique(ids, return_inverse=True)
        return rows("embedding.weight", different.numpy())[place]

    def logits(x: Tensor) -> Tensor:
        out = x.new_empty(*x.shape[:-1], head.out_features)
        step = max(1, ROWS // (4 * head.in_features))
        for begin in range(0, head.out_features, step):
            at = slice(begin, min(begin + step, head.out_features))
            out[..., at] = linear(x, rows("embedding.weight" if tied else "head.weight", at), head.onednn)
        return out

    embedding.forward = embed  # type: ignore[method-assign, assignment]
    head.forward = logits  # type: ignore[method-assign]


def _stream_layer(
    block: nn.Module, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], rounding: Rounding | None
) -> None:
    """Read the matrices of `modules`, by the beginnings of their names, while `block` runs."""
    places = [
        (module, name, f"{prefix}.{path}.{name}")
        for prefix, whole in modules.items()
        for path, module in whole.named_modules()
        for name, value in module.named_parameters(recurse=False)
        if value.is_meta
    ]
    hollow_ones = [module.get_parameter(name) for module, name, _ in places]

    def read(*_: object) -> None:
        for module, name, full in places:
            setattr(module, name, _parameter(full, tensors[full], rounding))

    def free(*_: object) -> None:
        for place, value in zip(places, hollow_ones, strict=True):
            setattr(place[0], place[1], value)

    block.register_forward_pre_hook(read)
    block.register_forward_hook(free, always_call=True)
