"""The ONNX model of a graph that is complete."""

from collections.abc import Mapping

import onnx
from onnx import helper

from .builder import IR_VERSION, OPSET, Graph
from .weights import Weights

Signature = dict[str, tuple[int, list[str | int]]]
"""Element type and shape of each input or output, by name."""


def model_proto(
    g: Graph, weights: Weights, inputs: Signature, outputs: Signature, domains: Mapping[str, int] | None = None
) -> onnx.ModelProto:
    """Return the model of a graph.

    Args:
        g: The root graph.
        weights: The weights that it was given.
        inputs: Its inputs.
        outputs: Its outputs.
        domains: Versions of the operator sets besides the standard one.

    Raises:
        AssertionError: A weight of the checkpoint is not used.
    """
    if weights.untaken():
        raise AssertionError(f"weights that no node uses: {sorted(weights.untaken())}")
    given, results = (
        [helper.make_tensor_value_info(name, element, shape) for name, (element, shape) in signature.items()]
        for signature in (inputs, outputs)
    )
    graph = helper.make_graph(g.nodes, g.name, given, results, list(g.initializers.values()))
    opsets = [helper.make_opsetid(name, version) for name, version in ({"": OPSET} | dict(domains or {})).items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="adaptive-lm")
