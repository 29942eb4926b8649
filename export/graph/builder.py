"""Write ONNX graphs node by node, so that the files in `export/model` read like those in `train/model`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .lazy_array import Array as Array
from .lazy_array import LazyArray

OPSET = 24
IR_VERSION = 11
SMALL = 1024
"""Weights of fewer bytes stay in the graph's own file."""
Later = dict[str, LazyArray]
"""The large weights of a graph by name, to be computed when their file is written."""


class Graph:
    """One graph or branch under construction. A value is its name; an operator returns the names of its outputs.

    Initializers belong to the graph that uses them: ONNX Runtime prepacks a weight only there.
    """

    def __init__(self, name: str, parent: Graph | None = None, later: Later | None = None) -> None:
        self.name = name
        self.parent = parent
        self.later: Later | None = parent.later if parent else later
        """Takes the content of large weights; None puts it into the graph."""
        self.shared: tuple[str, ...] = parent.shared if parent else ()
        """How the names of weights begin that several branches may read; the root graph has them, once."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.derived: dict[tuple[str, ...], tuple[str, ...]] = {}
        """Values computed from another value in this graph that may be used again, such as its quantised rows."""
        self._scope: list[str] = []
        self._names: dict[str, int] = parent._names if parent else {}

    def scope(self, name: str) -> _Scope:
        """Put a word before the names of the nodes written inside `with g.scope("attention"):`."""
        return _Scope(self._scope, name)

    def op(self, op_type: str, *inputs: str, name: str = "", result: str = "", **attributes: Any) -> str:
        """Add a node with one output and return that output; `result` gives it a public name."""
        return self.ops(op_type, *inputs, outputs=1, name=name, results=[result], **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: str,
        outputs: int,
        name: str = "",
        results: Sequence[str | None] = (),
        **attributes: Any,
    ) -> tuple[str, ...]:
        """Add a node with several outputs and return them; `results` gives them public names, None leaves one out."""
        node = self._unique("/".join([*self._scope, name or op_type]))
        names = [*results, *[""] * (outputs - len(results))]
        given = tuple("" if n is None else n or (node if outputs == 1 else f"{node}:{i}") for i, n in enumerate(names))
        self.nodes.append(helper.make_node(op_type, inputs, given, name=node, **attributes))
        return given

    def weight(self, name: str, value: Array | LazyArray, dtype: int | None = None) -> str:
        """Add an initializer under its name in the checkpoint; every weight is written once.

        Args:
            name: Name of the initializer.
            value: Its content.
            dtype: Element type of the bytes of `value` where numpy has none, as for bfloat16.
        """
        root = self.lineage()[-1]
        if name.startswith(self.shared) and (name in root.initializers or self is not root):
            return name if name in root.initializers else root.weight(name, value, dtype)
        for graph in self.lineage():
            if name in graph.initializers:
                raise AssertionError(f"weight {name} is written twice")
        if isinstance(value, LazyArray) and self.later is not None and value.nbytes >= SMALL:
            assert name not in self.later, f"weight {name} is written twice"
            self.later[name] = value
            element = helper.np_dtype_to_tensor_dtype(value.dtype) if dtype is None else dtype
            self.initializers[name] = TensorProto(name=name, data_type=element, dims=value.shape)
            return name
        # order="C", since ascontiguousarray would make a 0-d constant 1-d
        value = np.asarray(value, order="C")
        if dtype is None:
            self.initializers[name] = numpy_helper.from_array(value, name)
        else:
            self.initializers[name] = helper.make_tensor(name, dtype, value.shape, value.tobytes(), raw=True)
        return name

    def int64(self, *values: int) -> str:
        """Return a constant vector of int64."""
        return self._constant(np.array(values, np.int64))

    def scalar(self, value: float | np.generic) -> str:
        """Return a 0-d constant: bool, int64, float32, or the dtype of a numpy scalar."""
        if isinstance(value, np.generic):
            return self._constant(np.asarray(value))
        dtype = np.bool_ if isinstance(value, bool) else np.int64 if isinstance(value, int) else np.float32
        return self._constant(np.asarray(value, dtype))

    def constant(self, value: Array) -> str:
        """Return a small constant array of any dtype."""
        return self._constant(np.asarray(value))

    def branch(
        self,
        condition: str,
        name: str,
        types: Sequence[int],
        then: Callable[[Graph], Sequence[str]],
        otherwise: Callable[[Graph], Sequence[str]],
        results: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """Add an `If` whose branches two functions write; each returns outputs of the given element types."""
        branches = {}
        for side, write in (("then_branch", then), ("else_branch", otherwise)):
            graph = Graph(self._unique("/".join([*self._scope, name, side])), self)
            graph._scope = [*self._scope, name]
            branches[side] = graph.proto(write(graph), types)
        return self.ops("If", condition, outputs=len(types), name=name, results=results, **branches)

    def scan(
        self,
        name: str,
        states: Sequence[str],
        inputs: Sequence[str],
        outputs: int,
        body: Callable[[Graph, Sequence[str], Sequence[str]], Sequence[str]],
    ) -> tuple[str, ...]:
        """Add a `Scan` over the first axis of `inputs`, all float32, whose body a function writes.

        Args:
            name: Name of the node.
            states: The states before the first step.
            inputs: The values with one entry for each step.
            outputs: The number of values that each step gives, besides the states.
            body: Called with the states and inputs of one step; returns the states after it, then its outputs.

        Returns:
            The states after the last step, then the outputs of all steps, stacked.
        """
        graph = Graph(self._unique("/".join([*self._scope, name, "body"])), self)
        graph._scope = [*self._scope, name]
        own = [[f"{graph.name}:{kind}.{i}" for i in range(len(x))] for kind, x in (("state", states), ("in", inputs))]
        results = body(graph, *own)
        number = len(states) + outputs
        proto = graph.proto(results, [FLOAT] * number, [*own[0], *own[1]])
        return self.ops(
            "Scan", *states, *inputs, outputs=number, name=name, num_scan_inputs=len(inputs), body=proto
        )  # fmt: skip

    def proto(self, outputs: Sequence[str], types: Sequence[int], inputs: Sequence[str] = ()) -> onnx.GraphProto:
        """Return this branch as a GraphProto. An outer value, or one returned twice, goes through an Identity.

        Args:
            outputs: Its results.
            types: Their element types.
            inputs: The float32 inputs of the body of a `Scan`; other branches have none.
        """
        own = {output for node in self.nodes for output in node.output}
        names: list[str] = []
        for output in outputs:
            names.append(output if output in own and output not in names else self.op("Identity", output))
        infos = [helper.make_tensor_value_info(n, t, None) for n, t in zip(names, types, strict=True)]
        given = [helper.make_tensor_value_info(name, FLOAT, None) for name in inputs]
        return helper.make_graph(self.nodes, self.name, given, infos, list(self.initializers.values()))

    def lineage(self) -> list[Graph]:
        """Return this graph and those around it, innermost first."""
        return [self, *(self.parent.lineage() if self.parent else [])]

    def _constant(self, value: Array) -> str:
        name = f"{self.name}:{value.dtype}{list(value.shape) if value.ndim else ''}:{','.join(map(str, value.flat))}"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}.{count}" if count else name


class _Scope:
    def __init__(self, stack: list[str], name: str) -> None:
        self.stack, self.name = stack, name

    def __enter__(self) -> None:
        self.stack.append(self.name)

    def __exit__(self, *_: object) -> None:
        self.stack.pop()


FLOAT, INT64, BOOL, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8
INT32, DOUBLE, BFLOAT16 = TensorProto.INT32, TensorProto.DOUBLE, TensorProto.BFLOAT16
INT64_ZERO = helper.make_tensor("zero", INT64, [1], [0])
"""The fill of a ConstantOfShape; its default is a float."""
