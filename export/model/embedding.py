"""The embedding of ids. B batch, T time, N = B*T tokens, D width, V vocabulary."""

from ...train.model.config.model import ModelConfig
from ..graph.builder import FLOAT
from ..graph.weights import Weights, quantize_lazily
from .output_head import OutputHead

NAME = "embedding.weight"


class Embedding:
    """Writes the states that the first layer reads."""

    def __init__(self, weights: Weights, config: ModelConfig, head: OutputHead) -> None:
        """Add the table to the root graph, or take that of the output head where the two are tied."""
        self.g, self.weights, self.config = head.g, weights, config
        self.in_integers, self.precision = weights.in_integers(NAME), weights.precision_of(NAME)
        if config.tie_embeddings:
            stored = NAME if self.precision == "fp32" else f"{NAME}.{self.precision}"
            self.table, self.scale = (head.table, head.scale) if self.in_integers else (stored, "")
            return
        matrix = weights.matrix(NAME)
        if self.in_integers:
            codes, scale = quantize_lazily(matrix.T)
            self.table = self.g.weight(f"{NAME}.int8", codes.T)  # (V, D)
            self.scale = self.g.weight(f"{NAME}.scale", scale)
        else:
            self.table, self.scale = weights.stored(self.g, NAME, matrix, self.precision), ""

    def write(self, positions: str) -> str:
        """Embed the ids (B, T), scale them and add learned positions (N,) where the model does so: (N, D)."""
        g, x = self.g, self._rows()
        if self.config.embedding_scale != 1:
            x = g.op("Mul", x, g.scalar(self.config.embedding_scale), name="scale_embedding")
        if self.config.has_learned_positions:
            table = self.weights.parameter(g, "learned_positions")  # (context, D)
            x = g.op("Add", x, g.op("Gather", table, positions, axis=0), name="add_positions")
        return x

    def _rows(self) -> str:
        """Read the row of each id in float32: (B, T) -> (N, D)."""
        g = self.g
        ids = g.op("Reshape", "ids", g.int64(-1))
        by_column = self.in_integers and self.config.tie_embeddings  # the table of the head is (D, V)
        rows = g.op("Gather", self.table, ids, axis=1 if by_column else 0, name="embedding")
        if not self.in_integers:
            return rows if self.precision == "fp32" else g.op("Cast", rows, to=FLOAT)
        if by_column:
            rows = g.op("Transpose", rows, perm=[1, 0])
        scale = g.op("Unsqueeze", g.op("Gather", self.scale, ids, axis=0), g.int64(1))
        return g.op("Mul", g.op("Cast", rows, to=FLOAT), scale)
