"""The graph of our operators with many sequences in one pass, each in a slot of its caches.

L layers, S slots, N tokens of a pass, E experts, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime

from adaptive_lm.export.fused.signature import graph_inputs
from adaptive_lm.train.model import ThresholdTensors
from support.graphs.bare_graph import AXIS, DTYPES, Graph, GraphOutputs


@dataclass(frozen=True)
class Part:
    """The next tokens of the sequence in a slot."""

    slot: int
    ids: np.ndarray  # (n,)
    limits: ThresholdTensors


class Slots:
    """S slots, whose caches hold bytes 255 until they are written: NaN, or -1 in int8. States are zeros."""

    def __init__(self, graph: Graph, slots: int, capacity: int = 32, longest: int | None = None) -> None:
        config = graph.config
        self.graph = graph
        self.lengths = np.zeros((config.num_layers, slots), np.int64)
        self.positions = np.zeros(slots, np.int64)
        self.caches: dict[str, np.ndarray] = {}
        for entry in graph.session.get_inputs():
            if not entry.name.startswith("past_"):
                continue
            if entry.name.startswith(("past_state", "past_conv")):
                self.caches[entry.name] = np.zeros((slots, *entry.shape[1:]), np.float32)
                continue
            window = config.window_of(int(entry.name.rsplit(".", 1)[1]))
            cells = min(window + (longest or capacity) - 1, capacity) if window else capacity
            shape, dtype = (slots, entry.shape[1], cells, entry.shape[3]), np.dtype(DTYPES[entry.type])
            content = np.full(int(np.prod(shape)) * dtype.itemsize, 255, np.uint8)
            self.caches[entry.name] = content.view(dtype).reshape(shape)

    def run(self, parts: Sequence[Part], order: Sequence[int] | None = None) -> list[GraphOutputs]:
        """Compute parts in one pass; return the outputs of each, with the logits of all of its tokens.

        Args:
            parts: At most one of each slot.
            order: The part of each token, in the order of the pass; None takes one part after the other.
        """
        owner = np.repeat(np.arange(len(parts)), [len(part.ids) for part in parts])
        owner = owner if order is None else np.asarray(order)
        N = len(owner)
        ids, positions = np.zeros((N, 1), np.int64), np.zeros((N, 1), np.int64)
        levels = {
            name: np.zeros((len(self.lengths), N), np.float32)
            for name in ThresholdTensors._fields
            if name in graph_inputs(self.graph.config)
        }
        for number, part in enumerate(parts):
            own = owner == number
            ids[own, 0] = part.ids
            positions[own, 0] = self.positions[part.slot] + np.arange(len(part.ids))
            for name, level in levels.items():
                level[:, own] = getattr(part.limits, name).numpy()[:, None]
        slots = np.array([part.slot for part in parts])[owner]
        outputs = self.bare_run(
            {"ids": ids, "positions": positions, "slots": slots, "logit_rows": np.arange(N)} | levels
        )
        self.lengths = outputs["new_lengths"]
        for part in parts:
            self.positions[part.slot] += len(part.ids)
        return [self._of(outputs, owner == number, part.slot) for number, part in enumerate(parts)]

    def bare_run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph on its inputs other than lengths and caches; return its outputs but caches."""
        binding = self.graph.session.io_binding()
        for name, value in (inputs | {"lengths": self.lengths}).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        names = [output.name for output in self.graph.session.get_outputs() if "present_" not in output.name]
        for name in names:
            binding.bind_output(name, "cpu")
        for name, array in self.caches.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_", "present_"), value)
        self.graph.session.run_with_iobinding(binding)
        return {
            name: array.copy() for name, array in zip(names, binding.copy_outputs_to_cpu(), strict=False)
        }  # the caches follow

    def content(self, slot: int) -> bytes:
        """Return the bytes of the caches of a slot."""
        return b"".join(array[slot].tobytes() for array in self.caches.values())

    def _of(self, outputs: dict[str, np.ndarray], own: np.ndarray, slot: int) -> GraphOutputs:
        """Return the outputs of some tokens as those of one sequence, (.., 1, n, ..)."""
        one = {"logits": outputs["logits"][own][None], "new_lengths": outputs["new_lengths"][:, [slot]]}
        for name, axis in AXIS.items():
            if name in outputs and name != "logits":
                one[name] = np.compress(own, outputs[name], axis - 1).swapaxes(axis - 1, axis)
        return GraphOutputs(**one)
