"""Early exits: how sure the model is of its next token after a layer. n tokens, D width, V vocabulary.

Mirrors `train/model/routing/exits.py`.
"""

import math

from ....train.model.config.sections import ExitCriterion
from ...graph.builder import Graph
from ...graph.weights import Weights
from .thresholded_router import linear


def exit_router(g: Graph, weights: Weights, name: str, x: str) -> str:
    """Compute sigmoid(w . x + b): x (n, D) normed -> (n, 1). It needs no product with the output head."""
    return g.op("Sigmoid", linear(g, weights, name, x), name="exit_scores")


def confidence(g: Graph, criterion: ExitCriterion, logits: str, vocab_size: int) -> str:
    """Compute the confidence of logits (n, V), (n, 1) in 0..1."""
    if criterion == "entropy":
        log_probs = g.op("LogSoftmax", logits, axis=-1)
        products = g.op("Mul", g.op("Exp", log_probs), log_probs)  # a probability of 0 gives 0 times a finite number
        entropy = g.op("ReduceSum", products, g.int64(1), keepdims=1)  # negative
        return g.op("Add", g.op("Div", entropy, g.scalar(math.log(vocab_size))), g.scalar(1.0))
    probs = g.op("Softmax", logits, axis=-1)
    if criterion == "margin":
        best, _ = g.ops("TopK", probs, g.int64(2), outputs=2, axis=-1)
        first, second = g.ops("Split", best, outputs=2, axis=1, num_outputs=2)
        return g.op("Sub", first, second)
    return g.op("ReduceMax", probs, g.int64(1), keepdims=1)
