"""Remove what nothing reads: on a GPU every node is launched, also one whose result is not used."""

from collections.abc import Collection, Iterator

import onnx

from ..graph.builder import Graph


def prune(g: Graph, outputs: Collection[str]) -> None:
    """Remove the nodes of the root graph that no node, branch or output reads, and then their constants."""
    while True:
        read = {*outputs, *(name for node in g.nodes for name in _reads(node))}
        kept = [node for node in g.nodes if any(name in read for name in node.output if name)]
        if len(kept) == len(g.nodes):
            break
        g.nodes = kept
    g.initializers = {name: value for name, value in g.initializers.items() if name in read}


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node and its branches read."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _reads(inner)
            yield from (output.name for output in attribute.g.output)
