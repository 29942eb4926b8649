"""Experts that compute nothing or nearly nothing. Mirrors `train/model/experts/zero_experts.py`.

N tokens, D width, Z zero-computation experts: zeros first, then copies, then the K constants.
"""

from ....train.model.config.zero_experts import ZeroExpertsConfig
from ...graph.builder import Graph
from ...graph.weights import Weights


def zero_experts(g: Graph, weights: Weights, name: str, config: ZeroExpertsConfig, x: str, routing_weights: str) -> str:
    """Add up the outputs of x (N, D) with the routing weights (N, Z): (N, D) float32; "" where all are zeros."""
    if not config.copies + config.constants:
        return ""
    sizes = g.int64(config.zeros, config.copies, config.constants)
    _, copies, own = g.ops("Split", routing_weights, sizes, outputs=3, axis=1)
    if not config.constants:
        return g.op("Mul", x, g.op("ReduceSum", copies, g.int64(1), keepdims=1))
    mix, constants = (weights.parameter(g, f"{name}.{part}") for part in ("mix", "constants"))  # (K, D) each
    share = g.op("Sigmoid", g.op("Gemm", x, mix, transB=1, name="mix"))  # (N, K)
    kept = g.op("Concat", copies, g.op("Mul", own, share), axis=1)
    rest = g.op("Mul", own, g.op("Sub", g.scalar(1.0), share))
    scaled = g.op("Mul", x, g.op("ReduceSum", kept, g.int64(1), keepdims=1))
    return g.op("Add", scaled, g.op("MatMul", rest, constants, name="constants"))
