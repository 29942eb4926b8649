"""The whole graph of the target `cuda`. Mirrors `export/model/transformer.py`.

N tokens, D width, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import onnx

from ...runtime.format.manifest import Precisions
from ...train.model.config.model import ModelConfig
from ..graph.builder import BOOL, Array, Graph, Later
from ..graph.lazy_array import LazyArray
from ..graph.proto import model_proto
from ..graph.weights import FP32
from ..model.routing.exits import confidence, exit_router
from ..model.signature import graph_inputs, graph_outputs
from ..model.transformer import TransformerGraph
from .attention import MICROSOFT, kv_of
from .block import CudaBlock, CudaRecurrentBlock, someone
from .half import HalfWeights
from .output_head import CudaOutputHead
from .prune import prune


def build(
    config: ModelConfig,
    state: Mapping[str, Array | LazyArray],
    precisions: Precisions = FP32,
    later: Later | None = None,
    *,
    hidden: bool = False,
) -> onnx.ModelProto:
    """Build the model as one ONNX graph of standard and contrib operators.

    Args:
        config: The model.
        state: The checkpoint's weights by name; of controllers only the windows, see `source.weights_of`.
        precisions: Precision of each part: fp32, bf16 or fp16.
        later: Takes the content of large weights; None puts it into the graph.
        hidden: Whether the graph also gives the hidden states, after the last norm, of every token.

    Raises:
        AssertionError: A weight of the checkpoint is not used.
    """
    weights = HalfWeights(state, precisions)
    g = Graph("adaptive.cuda", later=later)
    # routed heads are masked: to compute only the chosen ones, the GPU would have to report how many tokens chose each
    CudaTransformerGraph(g, weights, config, "masked").write(hidden=hidden)
    kv = kv_of(precisions)
    outputs = graph_outputs(config, kv, hidden=hidden)
    prune(g, set(outputs))
    return model_proto(g, weights, graph_inputs(config, kv), outputs, {MICROSOFT: 1})


class CudaTransformerGraph(TransformerGraph):
    """Writes the operators of the whole model."""

    block = CudaBlock
    recurrent_block = CudaRecurrentBlock
    output_head = CudaOutputHead
    weights: HalfWeights

    def _num_logits(self) -> str:
        # Range and Shape leave the number in the memory of the host, where Slice and Reshape read it
        return self.g.op("Shape", self.g.op("Range", self.g.scalar(0), "num_logits", self.g.scalar(1)))

    def _exits(self, layer: int, x: str, alive: str, exit_threshold: str) -> str:
        """Return which tokens leave here, (N, 1) bool.

        The output head is multiplied only if a token asks for it, then for all of them.
        """
        g, criterion = self.g, self.config.depth.exit_criterion
        asked = g.op("And", alive, g.op("Less", exit_threshold, g.scalar(1.0)))

        def leaves(b: Graph, sure: str) -> str:
            return b.op("And", asked, b.op("Greater", sure, exit_threshold), name="leaves")

        if criterion == "router":
            return leaves(g, exit_router(g, self.weights, f"exit_routers.{layer}", self.head.normed(g, x)))

        def check(b: Graph) -> Sequence[str]:
            logits = self.head.logits(b, self.head.normed(b, x))
            return [leaves(b, confidence(b, criterion, logits, self.config.vocab_size))]

        def stay(b: Graph) -> Sequence[str]:
            return [b.op("And", asked, b.scalar(False))]

        return g.branch(someone(g, asked), "check", [BOOL], check, stay)[0]
