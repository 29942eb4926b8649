"""The choice of query heads, and how only the chosen ones are computed. Mirrors `train/model/attention/heads.py`.

N tokens, D width, H query heads, S of them shared, R = H - S routed, W width of a head.
"""

from typing import Literal, NamedTuple

import numpy as np

from ....runtime.format.manifest import Precision
from ....train.model.config.model import ModelConfig
from ...graph.builder import FLOAT, Graph
from ...graph.dispatch import Dispatch
from ...graph.weights import Weights, plus
from ..routing.thresholded_router import limit, linear

Execution = Literal["masked", "sliced"]
SLICED_FROM = {"fp32": 2**16, "int8": 2**18}
"""Number of weights of one head (its rows of q and columns of o) from which `sliced` is faster, with products in fp32
(also of bf16 and fp16 weights) or in int8 (also of int4 weights); measured, see docs/decisions/0010."""


def execution_of(config: ModelConfig, precision: Precision) -> Execution:
    """Choose how routed heads run: `masked` computes all of them, `sliced` only the chosen ones.

    Args:
        config: The model.
        precision: Precision of attention.
    """
    products = "int8" if precision in ("int8", "int4") else "fp32"
    return "sliced" if 2 * config.dim * config.resolved_head_dim >= SLICED_FROM[products] else "masked"


class HeadRoutes(NamedTuple):
    """The decisions of a head router."""

    selected: str  # (N, H) float32, 1 where selected, the shared heads first
    weights: str  # (N, H) float32, factors of the heads' outputs, 0 where not selected


def head_router(g: Graph, weights: Weights, name: str, config: ModelConfig, x: str, head_top_p: str) -> HeadRoutes:
    """Choose heads for normed x (N, D) at head_top_p (N, 1); float32 in every precision."""
    heads, routed, shared = config.heads, config.routed_heads, config.heads.shared_heads
    with g.scope("head_router"):
        logits = g.op("Gemm", x, weights.parameter(g, f"{name}.weight"), transB=1, name="router_logits")  # (N, H)
        of_shared = ""
        if shared:
            of_shared, logits = g.ops("Split", logits, g.int64(shared, routed), outputs=2, axis=1)
        router_probs = g.op("Softmax", logits, axis=-1, name="router_probs")  # (N, R)
        ranked, head = g.ops("TopK", router_probs, g.int64(routed), outputs=2, axis=-1)  # (N, R); ties in order of head
        if heads.routing == "adaptive":
            kept_ranks = _by_complexity(g, weights, name, config, x, head_top_p)
        elif heads.routing == "top_k":
            number = int(config.heads_per_token) - shared
            kept_ranks = g.op("Expand", g.op("Less", _ranks(g, routed), g.scalar(number)), g.op("Shape", ranked))
        else:
            mass_before = g.op("CumSum", ranked, g.scalar(1), exclusive=1, name="mass_before")  # (N, R)
            reach = heads.per_token_reach if heads.per_token else None
            kept_ranks = g.op("Less", mass_before, limit(g, weights, name, x, head_top_p, reach))
        # `head` is a permutation, so every element is overwritten: router_probs only gives the shape
        selected = g.op("ScatterElements", router_probs, head, g.op("Cast", kept_ranks, to=FLOAT), axis=-1)
        chosen = g.op("Mul", router_probs, selected)
        total = g.op("ReduceSum", chosen, g.int64(1), keepdims=1)
        scale = np.float32(config.heads_per_token - shared)
        if not shared:
            return HeadRoutes(selected, g.op("Mul", g.op("Div", chosen, total), g.scalar(scale), name="head_weights"))
        balance = g.op("Gemm", x, weights.parameter(g, f"{name}.balance"), transB=1)
        # the weights of both sides are scaled to these sums: two softmaxes and three factors in few operators
        sums = g.op("Mul", g.op("Softmax", balance, axis=-1), g.constant(np.array([2 * shared, 2 * scale], np.float32)))
        to_shared, to_routed = g.ops("Split", sums, outputs=2, axis=1, num_outputs=2)  # (N, 1) each
        common = g.op("Mul", g.op("Softmax", of_shared, axis=-1), to_shared)  # (N, S)
        chosen = g.op("Mul", chosen, g.op("Div", to_routed, total))
        selected = g.op("Pad", selected, g.int64(shared, 0), g.scalar(1.0), g.int64(1), name="selected_heads")
        return HeadRoutes(selected, g.op("Concat", common, chosen, axis=1, name="head_weights"))


def _by_complexity(g: Graph, weights: Weights, name: str, config: ModelConfig, x: str, head_top_p: str) -> str:
    """Keep ranks by the complexity c of a token: x (N, D), head_top_p (N, 1) -> (N, H) bool.

    Of the ranks between the least and the most, those with sigmoid(logit(q_r) - c) < head_top_p.
    """
    least, most, number = config.least_heads, config.most_heads, config.num_heads
    between = (np.arange(least, most) - least + 0.5) / max(most - least, 1)
    logits, shift = np.zeros(number, np.float32), np.zeros(number, np.float32)
    logits[least:most] = np.log(between / (1 - between))
    shift[:least], shift[most:] = -2, 3  # scores are 0..1 and levels 0..2: the first always pass, the last never
    complexity = linear(g, weights, f"{name}.per_token", x)
    scores = g.op("Sigmoid", g.op("Sub", g.constant(logits), complexity))
    return g.op("Less", g.op("Add", scores, g.constant(shift)), head_top_p)


def _ranks(g: Graph, number: int) -> str:
    return g.op("Range", g.scalar(0), g.scalar(number), g.scalar(1))


class Slices:
    """Routed heads, computed only for the tokens that chose them by zero-row dispatch, as experts are."""

    def __init__(self, g: Graph, weights: Weights, name: str, config: ModelConfig, routes: HeadRoutes) -> None:
        self.g, self.weights, self.name, self.config, self.routes = g, weights, name, config, routes
        self.dispatch = Dispatch(g, weights, config.num_heads, routes.selected)

    def queries(self, x: str) -> str:
        """Compute queries: x (N, D) -> (N, H, W). Those of heads that a token did not choose are never read."""
        config, name = self.config, f"{self.name}.q.weight"
        stack = self.weights.matrix(name).reshape(config.num_heads, config.resolved_head_dim, config.dim)
        q = self.dispatch.spread(self.dispatch.matmul(x, name, stack.transpose(0, 2, 1), gather=True))
        bias = self.weights.bias(self.g, name)  # (H W,)
        heads = self.g.int64(config.num_heads, config.resolved_head_dim)
        return plus(self.g, q, self.g.op("Reshape", bias, heads)) if bias else q

    def outputs(self, mixed: str) -> str:
        """Compute the sum over the chosen heads of weight_i head_i W_o,i: mixed (N, H, W) -> (N, D)."""
        g, config, name = self.g, self.config, f"{self.name}.o.weight"
        heads = config.num_heads
        stack = self.weights.matrix(name).T.reshape(heads, config.resolved_head_dim, config.dim)
        flat = g.op("Reshape", mixed, g.int64(-1, config.resolved_head_dim))  # (N*H, W)
        place = g.op("Add", g.op("Mul", self.dispatch.token, g.scalar(heads)), self.dispatch.part)  # (R,)
        rows = self.dispatch.matmul(g.op("Gather", flat, place, axis=0), name, stack, gather=False)
        return plus(g, self.dispatch.combine(rows, self.routes.weights), self.weights.bias(g, name))
