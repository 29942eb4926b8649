"""The output head on a GPU. Mirrors `export/model/output_head.py`. n tokens, D width, V vocabulary."""

from ...train.model.config.model import ModelConfig
from ..graph.builder import Graph
from ..model.output_head import OutputHead
from .half import HalfWeights, product


class CudaOutputHead(OutputHead):
    """Writes the logits; a table in fp16 is multiplied in fp16."""

    def __init__(self, g: Graph, weights: HalfWeights, config: ModelConfig) -> None:
        super().__init__(g, weights, config)
        self.weights: HalfWeights = weights

    def product(self, g: Graph, normed: str) -> str:
        """Multiply by the table: (n, D) -> (n, V) float32."""
        if not self.weights.in_half(self.name):
            return super().product(g, normed)
        return product(g, normed, f"{self.name}.fp16", "head")
