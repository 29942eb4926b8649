"""A random feed-forward layer for the operator FeedForward, and its formula."""

import math
from typing import Any

import numpy as np
from reference.routing import rms_norm, softmax

from adaptive_lm.runtime.ops.layout import PRECISIONS, Precision, pack

from ..graphs.one_operator import run
from .operator_formulas import Array, Experts, feed_forward, normal, run_expert

EPS = 1e-5
DENSE, TOP_P, TOP_K, RELU = range(4)


class Layer:
    """A random feed-forward layer, its packed inputs and its attributes."""

    def __init__(
        self, precision: Precision, routing: int, dim: int, hidden: int, experts: int, shared: int = 0, tokens: int = 5
    ) -> None:
        self.routed = Experts(
            normal(experts, 2 * hidden, dim, seed=1), normal(experts, dim, hidden, seed=2) / hidden, precision
        )
        self.norm, self.router = 1 + normal(dim, seed=3) / 4, normal(experts, dim, seed=4) / math.sqrt(dim)
        self.inputs: dict[str, Array] = {
            "h": normal(tokens, dim, seed=5),
            "norm": self.norm,
            "gate_up": pack(self.routed.gate_up, precision),
            "down": pack(self.routed.down, precision),
        }
        if routing != DENSE:
            self.inputs["router"] = self.router
        if routing in (TOP_P, RELU):
            self.inputs["router_top_p"] = np.array([[0.9], [0.6]], np.float32)
        code = PRECISIONS.index(precision)
        self.attributes: dict[str, Any] = {
            "layer": 1,
            "eps": EPS,
            "parallel": 0,
            "num_experts": experts,
            "hidden": hidden,
            "routing": routing,
            "experts_per_token": min(2, experts),
            "renormalize": 1,
            "reach": 0.0,
            "shared_hidden": shared,
            "precision_experts": code,
            "precision_shared": code,
            "most_experts": 0,
            "score": 0,
            "activation": 0,
            "gated": 1,
            "columns": experts,
            "zeros": 0,
            "copies": 0,
            "constants": 0,
        }
        self.shared = None
        if shared:
            self.shared = Experts(
                normal(1, 2 * shared, dim, seed=6), normal(1, dim, shared, seed=7) / shared, precision
            )
            self.inputs |= {
                "shared_gate_up": pack(self.shared.gate_up, precision),
                "shared_down": pack(self.shared.down, precision),
            }

    def run(self, threads: int = 1, **inputs: Array) -> tuple[Array, ...]:
        return run("FeedForward", self.inputs | inputs, threads, **self.attributes)

    def expected(self, h: Array, chosen: list[int]) -> Array:
        out = feed_forward(h, self.norm, EPS, self.router, chosen, self.routed, bool(self.attributes["renormalize"]))
        if self.shared is not None:
            out = out + run_expert(self.shared, 0, rms_norm(h.astype(np.float64), EPS, self.norm))
        return out

    def probs(self, h: Array) -> Array:
        return softmax(self.router @ rms_norm(h.astype(np.float64), EPS, self.norm))
