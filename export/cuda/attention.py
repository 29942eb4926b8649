"""Attention on a GPU: GroupQueryAttention where it fits, else the standard operators over a cache in fp16 or fp32.

B batch, T time, N = B*T tokens, D width, H query heads, K key/value heads, W width of a head, C capacity of the cache.
"""

from typing import Any

import numpy as np

from ...runtime.format.manifest import KV, Precisions
from ...train.model.config.model import ModelConfig
from ..graph.builder import INT32, Graph
from ..graph.lazy_array import concatenate
from ..graph.weights import Weights, plus
from ..model.attention.attention import Attention, Cache, Cells, Shared
from ..model.attention.window import Ring
from ..model.signature import CACHE_TYPES
from .half import half, wide

MICROSOFT = "com.microsoft"
"""Domain of the operators that ONNX Runtime adds to the standard."""
MOST_HEAD_DIM = 256
"""Widest head of the kernels of GroupQueryAttention."""


def kv_of(precisions: Precisions) -> KV:
    """Return the precision of the cache: that of attention."""
    return "fp16" if precisions.attention == "fp16" else "fp32"


def is_grouped(config: ModelConfig, precisions: Precisions, layer: int) -> bool:
    """Return whether GroupQueryAttention computes the attention of a layer.

    Its CUDA kernels exist for fp16 only and rotate a multiple of 16 components. It writes the keys of every token of
    the pass, has one window for all of them and adds nothing to their products, so it cannot leave out a token or a
    head.
    """
    width, rope = config.resolved_head_dim, config.rope_of(layer)
    return (
        config.attends(layer)
        and kv_of(precisions) == "fp16"
        and width % 16 == 0
        and width <= MOST_HEAD_DIM
        and (rope is None or rope.rotated(width) % 16 == 0)
        and config.positions_of(layer) != "cope"
        and not config.window_of(layer)
        and not config.can_skip(layer)
        and config.heads.routing == "all"
    )


class CudaAttention(Attention):
    """The operators of one layer's attention, over a cache of the precision of attention."""

    def __init__(self, weights: Weights, config: ModelConfig, layer: int, shared: Shared) -> None:
        super().__init__(weights, config, layer, shared)
        kv = kv_of(weights.precisions)
        self.in_half, self.cache_type = kv == "fp16", CACHE_TYPES[kv]

    def _scatter(self, g: Graph, past: str, update: str, lengths: str, name: str, result: str) -> str:
        if self.in_half and name != "write_counted":
            update = half(g, update)
        return super()._scatter(g, past, update, lengths, name, result)

    def _mix(self, g: Graph, q: str, present: Cache, seen: str, ring: Ring | None, cells: Cells) -> str:
        if not self.in_half:
            return super()._mix(g, q, present, seen, ring, cells)
        if self.positions == "cope":  # its products with positions are float32
            widened = present._replace(key=wide(g, present.key), value=wide(g, present.value))
            return super()._mix(g, q, widened, seen, ring, cells)
        return wide(g, g.op("Attention", half(g, q), present.key, present.value, seen, **self._cap()))


def grouped_query_attention(
    g: Graph,
    weights: Weights,
    config: ModelConfig,
    layer: int,
    x: str,
    past: Cache,
    present: Cache,
    rotary: tuple[str, str] | None,
) -> str:
    """Write GroupQueryAttention for normed x (N, D) -> (N, D) float32; keys and values are written in place.

    `total_sequence_length` is the capacity, which is known without reading a number back from the GPU; how far each
    sequence really goes is in `seqlens_k`. A pass as long as the capacity is a whole prompt, as the operator assumes.
    """
    name = f"layers.{config.recursion.source_of(layer)}.attention"
    heads, groups, width = config.num_heads, config.num_kv_heads, config.resolved_head_dim
    # heads that are normed by themselves stand apart, those normed together side by side
    apart = config.attention.qk_norm == "head"
    q_shape, k_shape = ((heads, width), (groups, width)) if apart else ((heads * width,), (groups * width,))
    q, k, v = (
        g.op("Reshape", part, _grid(g, *shape))
        for part, shape in zip(
            g.ops(
                "Split",
                _packed(g, weights, name, x),
                g.int64(heads * width, groups * width, groups * width),
                outputs=3,
                axis=1,
            ),
            (q_shape, k_shape, (groups * width,)),
            strict=True,
        )
    )
    if config.attention.qk_norm != "none":
        q = _norm(g, weights, f"{name}.q_norm", q, config.norm_eps)
        k = _norm(g, weights, f"{name}.k_norm", k, config.norm_eps)
    if apart:
        q, k = (g.op("Reshape", part, _grid(g, number * width)) for part, number in ((q, heads), (k, groups)))
    tables = ("", "") if rotary is None else _tables(g, rotary)
    softcap: dict[str, Any] = {"softcap": config.attention.softcap} if config.attention.softcap else {}
    mixed, *_ = g.ops(
        "GroupQueryAttention", q, k, v, past.key, past.value, *_lengths(g, past.key), *tables,
        outputs=3, results=("", present.key, present.value), domain=MICROSOFT,
        num_heads=heads, kv_num_heads=groups, do_rotary=int(rotary is not None), **softcap,
    )  # fmt: skip
    output = weights.stored(g, f"{name}.o.weight", weights.matrix(f"{name}.o.weight"), "fp16")
    out = wide(g, g.op("Gemm", g.op("Reshape", mixed, g.int64(-1, heads * width)), output, name="o", transB=1))
    return plus(g, out, weights.bias(g, f"{name}.o.weight"))


def _packed(g: Graph, weights: Weights, name: str, x: str) -> str:
    """Multiply by q, k and v in one product and add their biases: (N, D) -> (N, (H + 2 K) W) fp16."""
    matrices = [weights.matrix(f"{name}.{part}.weight") for part in ("q", "kv")]
    stored = weights.stored(g, f"{name}.qkv.weight", concatenate(matrices), "fp16")
    biases = [weights.take(bias) for part in ("q", "kv") if (bias := f"{name}.{part}.bias") in weights.state]
    added = [g.weight(f"{name}.qkv.bias.fp16", np.concatenate(biases).astype(np.float16))] if biases else []
    return g.op("Gemm", half(g, x), stored, *added, name="qkv", transB=1)


def _norm(g: Graph, weights: Weights, name: str, heads: str, epsilon: float) -> str:
    weight = g.weight(f"{name}.weight.fp16", weights.take(f"{name}.weight").astype(np.float16))
    return g.op("RMSNormalization", heads, weight, axis=-1, epsilon=epsilon, name=name.rsplit(".", 1)[1])


def _grid(g: Graph, *shape: int) -> str:
    """Return (B, T, *shape) as an int64 vector, once for every layer."""
    key = ("grid", *map(str, shape))
    if key not in g.derived:
        g.derived[key] = (g.op("Concat", g.op("Shape", "ids"), g.int64(*shape), axis=0),)
    return g.derived[key][0]


def _tables(g: Graph, rotary: tuple[str, str]) -> tuple[str, str]:
    """Return cos and sin of RoPE, (context_length, R / 2) fp16 each, once for all layers that share them."""
    cos, sin = (half(g, table) for table in rotary)
    return cos, sin


def _lengths(g: Graph, past_key: str) -> tuple[str, str]:
    """Return the place of each sequence's last token, (B,) int32, and the capacity, () int32, once for every layer."""
    if ("lengths",) not in g.derived:
        last = g.op("Slice", "positions", g.int64(-1), g.int64(2**62), g.int64(1))  # (B, 1)
        seqlens = g.op("Cast", g.op("Reshape", last, g.int64(-1)), to=INT32, name="seqlens_k")
        capacity = g.op("Squeeze", g.op("Shape", past_key, start=2, end=3))
        g.derived["lengths",] = (seqlens, g.op("Cast", capacity, to=INT32, name="total_sequence_length"))
    seqlens, capacity = g.derived["lengths",]
    return seqlens, capacity
