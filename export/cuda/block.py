"""One layer on a GPU. Mirrors `export/model/block.py`.

An `If` reads its condition back from the GPU and so waits for all that was queued. It is used where a whole layer can
be skipped: it costs one wait and saves the layer. Inside, every token is computed and the rest masked, since a list of
the tokens that run would cost another wait. N tokens, D width, X columns that a layer reports of a token.
"""

from collections.abc import Sequence

from ...train.model.config.model import ModelConfig
from ..graph.builder import FLOAT, Graph
from ..model.attention.attention import Attended
from ..model.block import Batch, Block, LayerInputs, LayerOutputs
from ..model.recurrent_block import RecurrentBlock
from ..model.routing.depth import DepthRoutes
from ..model.routing.router import ExpertLevels
from .attention import MICROSOFT, CudaAttention, grouped_query_attention, is_grouped
from .experts import fused_moe, is_fused
from .half import HalfWeights


class CudaBlock(Block):
    """The operators of one layer."""

    def __init__(self, weights: HalfWeights, config: ModelConfig, layer: int, batch: Batch) -> None:
        super().__init__(weights, config, layer, batch)
        self.weights: HalfWeights = weights
        self.attention = CudaAttention(weights, config, layer, batch.attention)

    def write(self, g: Graph, x: str, alive: str | None, inputs: LayerInputs) -> LayerOutputs:
        """Write the layer for x (N, D); alive (N, 1) bool is None before the first exit."""
        if not is_grouped(self.config, self.weights.precisions, self.layer):
            return super().write(g, x, alive, inputs)
        normed = self._norm(g, x, "attention_norm")
        with g.scope("attention"):
            rotary = self.batch.attention.rotary[self.layer]
            out = grouped_query_attention(
                g, self.weights, self.config, self.layer, normed, inputs.past, inputs.present, rotary
            )
        out, chosen = self._feed_forward(g, x, Attended(out, []), inputs)
        return LayerOutputs(out, None, chosen)

    def _skippable(self, g: Graph, x: str, runs: str, depth: DepthRoutes | None, inputs: LayerInputs) -> LayerOutputs:
        if self.config.depth.skipped_kv == "none":  # its cache leaves tokens out, so their places must be counted
            return super()._skippable(g, x, runs, depth, inputs)
        normed, present = self._project(g, x, runs, inputs)
        nothing = self._nothing(g)

        def run(b: Graph) -> Sequence[str]:
            out, chosen = self._residuals(b, x, normed, self.batch.cells, present, inputs)
            if depth is not None:
                gate = b.op("Mul", depth.scores, b.scalar(2.0))
                out = b.op("Add", x, b.op("Mul", gate, b.op("Sub", out, x)), name="gated")
            return [
                b.op("Where", runs, out, x, name="masked"),
                b.op("Mul", chosen, b.op("Cast", runs, to=FLOAT), name="masked_report"),
            ]

        def skip(_: Graph) -> Sequence[str]:
            return [x, nothing]

        out, chosen = g.branch(someone(g, runs), "run", [FLOAT] * 2, run, skip)
        return LayerOutputs(out, runs, chosen)

    def _nothing(self, g: Graph) -> str:
        """Return the report of tokens that skip a layer, once for all layers: a branch would read its shape back."""
        if ("nothing",) not in g.derived:
            g.derived["nothing",] = (self._zeros(g),)
        return g.derived["nothing",][0]

    def _residual(self, g: Graph, x: str, attended: str) -> tuple[str, str]:
        config = self.config
        if config.norm != "rms" or not config.has_norms_before or config.parallel_residual:
            return super()._residual(g, x, attended)
        weight = self.weights.parameter(g, f"{self.name}.ffn_norm.weight")
        normed, _, _, h = g.ops(
            "SkipSimplifiedLayerNormalization", x, attended, weight,
            outputs=4, results=("", None, None, ""), name="ffn_norm", domain=MICROSOFT, epsilon=self.config.norm_eps,
        )  # fmt: skip
        return h, normed

    def _moe(self, g: Graph, normed: str, levels: ExpertLevels, h: str) -> tuple[str, str]:
        if not is_fused(self.config):
            return super()._moe(g, normed, levels, h)
        return fused_moe(g, self.weights, f"{self.name}.moe", self.config.ffn, normed, levels, h)


class CudaRecurrentBlock(RecurrentBlock, CudaBlock):
    """The operators of one layer with a recurrent mixer: the standard ones, and what follows as in `CudaBlock`.

    The states leave out tokens that skip the layer, so these are listed, at the cost of one wait.
    """


def someone(g: Graph, tokens: str) -> str:
    """Return whether any of tokens (N, 1) bool is set, () bool. A sum of float32 needs no cuDNN, a maximum would."""
    number = g.op("ReduceSum", g.op("Cast", tokens, to=FLOAT), keepdims=0)
    return g.op("Greater", number, g.scalar(0.0), name="someone_runs")
