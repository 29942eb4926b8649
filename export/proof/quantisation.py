"""The cost of rounding weights, activations and cache: bits per byte of text, and routing decisions that differ."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...runtime.format.manifest import KV, Precision, Precisions
from ..graph.builder import Array
from ..graph.weights import FP32
from .judge import Judge
from .passes import Pass

MAX_WORSE: dict[Precision, float] = {"fp32": 0.005, "bf16": 0.005, "fp16": 0.005, "int8": 0.005, "int4": 0.03}
"""Share by which bits per byte may exceed those of the torch model, by the narrowest precision of the weights; that of
fp32 is for weights in fp32 with a narrower cache."""
MAX_ROUNDED_WORSE = 0.005
"""The same share, compared with torch with the rounded weights: what rounding of activations and cache may cost."""
LEAST_COSINE: dict[Precision, float] = {"fp32": 0.98, "bf16": 0.98, "fp16": 0.98, "int8": 0.98, "int4": 0.9}
"""Least cosine between the embedding of a window and that of the torch model, by the narrowest precision."""
ROWS = 32
"""Tokens whose logits are widened to float64 at a time."""
PER_ROW = 0.005
"""What a portable graph in int8 may lose besides: its activations have one scale per row (decision 0001), which costs
more where some are much larger than the others. SmolLM2-135M-Instruct loses 0.7 % with it, and 0.1 % with the scales
per block of the target cpu."""


@dataclass(frozen=True)
class Quantisation:
    """The comparison of a graph that rounds with torch in fp32, and with torch with the rounded weights.

    The second leaves the rounding of activations and cache.
    """

    precision: Precision
    """The narrowest precision of the weights."""
    kv: KV
    """The precision of the cache."""
    per_row: bool
    """Whether activations are rounded with one scale per row."""
    bits: float
    """Bits per byte of the graph."""
    torch_bits: float
    """Bits per byte of torch in fp32."""
    rounded_bits: float
    """Bits per byte of torch with the rounded weights."""
    flips: float
    """Share of the routing decisions that differ from those of torch in fp32."""
    rounded_flips: float
    """Share of them that differ from those of torch with the rounded weights."""
    cosine: float | None
    """Least cosine between the embedding of a window and that of torch; None where the graph gives no hidden states."""

    @property
    def worse(self) -> float:
        """The share by which bits per byte exceed those of torch in fp32."""
        return self.bits / self.torch_bits - 1

    @property
    def limit(self) -> float:
        """The largest share that passes."""
        return MAX_WORSE[self.precision] + PER_ROW * self.per_row

    @property
    def passed(self) -> bool:
        """Whether the graph loses little enough."""
        rounded_worse = self.bits / self.rounded_bits - 1
        close = self.worse <= self.limit and rounded_worse <= MAX_ROUNDED_WORSE + PER_ROW * self.per_row
        return close and (self.cosine is None or self.cosine >= LEAST_COSINE[self.precision])

    def report(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        return {
            "bits_per_byte": self.bits,
            "bits_per_byte_torch": self.torch_bits,
            "bits_per_byte_rounded": self.rounded_bits,
            "worse_share": self.worse,
            "flipped_decisions_share": self.flips,
            "flipped_against_rounded_share": self.rounded_flips,
            **({} if self.cosine is None else {"least_embedding_cosine": self.cosine}),
            "passed": self.passed,
        }

    def line(self) -> str:
        """Return one line for the user."""
        cache = "" if self.kv == "fp32" else f" with a cache in {self.kv}"
        least = LEAST_COSINE[self.precision]
        return (
            f"{self.precision}{cache}: {self.bits:.4f} bits per byte, torch {self.torch_bits:.4f} "
            f"({self.worse:+.2%}, limit {self.limit:+.1%}), with the rounded weights {self.rounded_bits:.4f}; "
            f"{self.flips:.2%} of the routing decisions differ"
            + ("" if self.cosine is None else f"; least cosine of an embedding {self.cosine:.4f}, limit {least:g}")
        )


def measure(judge: Judge, target: str, precisions: Precisions, kv: KV, actual: list[Pass]) -> Quantisation:
    """Compare the passes of the graph of `target` at the trained thresholds with those of torch."""
    exact, rounded = (judge.passes(target, one, "trained") for one in (FP32, precisions))
    return Quantisation(
        precision=precisions.narrowest,
        kv=kv,
        per_row=target == "portable" and precisions.narrowest in ("int8", "int4"),
        bits=_bits_per_byte(judge, actual),
        torch_bits=_bits_per_byte(judge, exact),
        rounded_bits=_bits_per_byte(judge, rounded),
        flips=_flips(exact, actual),
        rounded_flips=_flips(rounded, actual),
        cosine=_least_cosine(exact, actual),
    )


def _least_cosine(expected: list[Pass], actual: list[Pass]) -> float | None:
    """Return the least cosine between the embeddings of a window; None where the graph gives no hidden states."""
    if not actual[0].hidden.shape[1]:
        return None
    cosines = []
    for one, other in zip(expected, actual, strict=True):
        first, second = (states.hidden[:].mean(0, dtype=np.float64) for states in (one, other))
        cosines.append(float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second))))
    return min(cosines)


def _flips(expected: list[Pass], actual: list[Pass]) -> float:
    """Return the share of routing decisions that differ."""
    routed = ("selected_experts", "selected_heads", "layers_run")
    flips = decisions = 0
    for one, other in zip(expected, actual, strict=True):
        for name in routed:
            flips += int((getattr(one, name) != getattr(other, name)).sum())
            decisions += getattr(one, name).size
    return flips / decisions


def _bits_per_byte(judge: Judge, passes: list[Pass]) -> float:
    return sum(_bits(one, window) for one, window in zip(passes, judge.windows, strict=True)) / judge.num_bytes()


def _bits(one: Pass, window: torch.Tensor) -> float:
    """Return the bits that code the window (1, T) after its first token."""
    targets = window[0, 1:].numpy()
    coded = []
    for begin in range(0, len(targets), ROWS):
        following = targets[begin : begin + ROWS]
        logits: Array = one.logits[begin : begin + len(following)].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        coded.append(log_probs[np.arange(len(following)), following])
    return float(-np.concatenate(coded).sum() / math.log(2))
