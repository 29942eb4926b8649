"""The last norm and the output head. n tokens, D width, V vocabulary."""

from ...train.model.config.model import ModelConfig
from ..graph.builder import Graph
from ..graph.weights import Weights, dequantize, integer_matmul, quantize_lazily, quantize_rows
from .norm import parameters_of, state_norm


class OutputHead:
    """Writes the logits of the last layer and of early exits. The graph of the target `cuda` replaces the product."""

    def __init__(self, g: Graph, weights: Weights, config: ModelConfig) -> None:
        """Add the table to the root graph `g`; where the embedding is tied to the head, both read it."""
        self.g, self.weights, self.config = g, weights, config
        name = self.name = "embedding.weight" if config.tie_embeddings else "head.weight"
        matrix = weights.matrix(name)
        if weights.in_integers(name):
            codes, scale = quantize_lazily(matrix.T)  # (D, V), one scale a word
            self.table, self.scale = g.weight(f"{name}.int8", codes), g.weight(f"{name}.scale", scale)
        else:
            self.table, self.scale = weights.floats(g, name, matrix, weights.precision_of(name)), ""

    def normed(self, g: Graph, x: str) -> str:
        """Apply the last norm, which exits share: (n, D) -> (n, D)."""
        names = parameters_of(self.config, "norm")
        for name in names:
            if name not in self.weights.taken:
                self.weights.parameter(self.g, name)
        return state_norm(g, self.config, x, names, "norm")

    def logits(self, g: Graph, normed: str) -> str:
        """Compute the logits, within the softcap where there is one: (n, D) -> (n, V)."""
        logits, cap = self.product(g, normed), self.config.logits_softcap
        return g.op("Mul", g.op("Tanh", g.op("Div", logits, g.scalar(cap))), g.scalar(cap)) if cap else logits

    def product(self, g: Graph, normed: str) -> str:
        """Multiply by the table: (n, D) -> (n, V)."""
        if not self.weights.in_integers(self.name):
            return g.op("Gemm", normed, self.table, transB=1, name="head")
        rows, row_scale = quantize_rows(g, normed)
        return dequantize(g, integer_matmul(g, rows, self.table, "head"), row_scale, self.scale)
