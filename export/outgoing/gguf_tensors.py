"""The tensors of one of our models under the names and in the layouts of GGUF.

E experts, F their width, D the model's width, H heads, W their width.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...train.model import ModelConfig
from ...train.model.attention.rope import scaled
from .gguf_family import Family

State = Mapping[str, Tensor]


class Outgoing(NamedTuple):
    """A tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def tensors_of(config: ModelConfig, state: State, family: Family) -> Iterator[Outgoing]:
    """Yield each tensor of a model; matrices are (outputs, inputs), experts (E, outputs, inputs)."""
    yield _same("token_embd.weight", state["embedding.weight"])
    yield _same("output_norm.weight", state["norm.weight"])
    if not config.tie_embeddings:
        yield _same("output.weight", state["head.weight"])
    divisors = divisors_of(config)
    if divisors is not None:
        yield _same("rope_freqs.weight", divisors)
    for layer in range(config.num_layers):
        at = {name.removeprefix(f"layers.{layer}."): tensor for name, tensor in state.items()
              if name.startswith(f"layers.{layer}.")}  # fmt: skip
        yield from _of_layer(config, at, f"blk.{layer}", family)


def divisors_of(config: ModelConfig) -> Tensor | None:
    """Return the divisors (W / 2,) of the rotary frequencies where GGUF holds them as a tensor; else None."""
    (rope,) = config.ropes
    if rope.scaling.kind not in ("llama3", "longrope"):
        return None
    width = config.resolved_head_dim
    frequencies = rope.theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return (frequencies / scaled(frequencies, rope, config.context_length)).float()


def _of_layer(config: ModelConfig, at: State, to: str, family: Family) -> Iterator[Outgoing]:
    yield _same(f"{to}.attn_norm.weight", at["attention_norm.weight"])
    yield _same(f"{to}.ffn_norm.weight", at["ffn_norm.weight"])
    width = config.resolved_head_dim if family.permuted else 0
    for kind in ("weight", "bias"):
        if f"attention.q.{kind}" in at:
            q, kv = at[f"attention.q.{kind}"], at[f"attention.kv.{kind}"]
            key, value = kv.chunk(2)
            yield _made(f"{to}.attn_q.{kind}", q, partial(neighbours_paired, q, width))
            yield _made(f"{to}.attn_k.{kind}", key, partial(neighbours_paired, key, width))
            yield _same(f"{to}.attn_v.{kind}", value)
        if f"attention.o.{kind}" in at:
            yield _same(f"{to}.attn_output.{kind}", at[f"attention.o.{kind}"])
    if config.attention.qk_norm != "none":
        yield _same(f"{to}.attn_q_norm.weight", at["attention.q_norm.weight"])
        yield _same(f"{to}.attn_k_norm.weight", at["attention.k_norm.weight"])
    if "moe.gate_up" in at:
        yield _same(f"{to}.ffn_gate_inp.weight", at["moe.router.weight"])
        for name, part in zip(("gate", "up"), at["moe.gate_up"].chunk(2, -1), strict=True):  # (E, D, F)
            yield _made(f"{to}.ffn_{name}_exps.weight", part.transpose(1, 2))
        yield _made(f"{to}.ffn_down_exps.weight", at["moe.down"].transpose(1, 2))
    for kind in ("weight", "bias"):
        if f"ffn.gate_up.{kind}" in at:
            for name, part in zip(("gate", "up"), at[f"ffn.gate_up.{kind}"].chunk(2), strict=True):
                yield _same(f"{to}.ffn_{name}.{kind}", part)
            yield _same(f"{to}.ffn_down.{kind}", at[f"ffn.down.{kind}"])


def _same(name: str, tensor: Tensor) -> Outgoing:
    return Outgoing(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def _made(name: str, tensor: Tensor, read: Callable[[], Tensor] | None = None) -> Outgoing:
    return Outgoing(name, tuple(tensor.shape), tensor.dtype, read or tensor.contiguous)


def neighbours_paired(tensor: Tensor, width: int) -> Tensor:
    """Reorder the rows of q or k from pairs of one component of each half to neighbouring pairs.

    Args:
        tensor: Weight or bias, with the rows of all heads.
        width: Rows of a head; 0 leaves all as they are.
    """
    if not width:
        return tensor
    return tensor.view(-1, 2, width // 2, *tensor.shape[1:]).transpose(1, 2).flatten(0, 2)
