"""One call of the graph: its input and output arrays, bound once.

L layers, N rows (tokens of a pass), R rows whose logits are computed, D width, E experts, H query heads, V vocabulary.
"""

from collections.abc import Sequence as Works
from dataclasses import fields
from typing import Any

import numpy as np

from ..dial.thresholds import Thresholds
from .graph import Graph, reported, thresholds_of
from .memory.kv_cache import Cache
from .memory.states import States
from .step import Step, Work
from .usage.routes import Ints, Routes, between

KEPT_BYTES = 32 * 2**20
"""Most bytes of arrays that one cache keeps for passes of the shapes used last."""
KEPT_PASSES = 64
"""Most passes that one cache keeps. ONNX Runtime takes about 20 KiB for the binding of each, and a server meets
hundreds of shapes; the few that decode come again and again."""


class Pass:
    """One call of the graph for a number of rows: its arrays, and their binding.

    A graph that mixes sequences takes each row as (B = N, T = 1) with its slot; any other takes the rows of one
    sequence as (B = 1, T = N).

    Args:
        graph: The graph.
        cache: The caches that the call reads and writes.
        states: The states that it reads and writes.
        rows: Tokens of the call.
        num_logits: Rows whose logits are computed, at least one.
    """

    def __init__(self, graph: Graph, cache: Cache, states: States, rows: int, num_logits: int) -> None:
        model, mixes = graph.manifest.model, graph.mixes_sequences
        L = model.num_layers
        self.rows = rows
        self.ids = np.zeros(rows, np.int64)
        self.positions = np.zeros(rows, np.int64)
        self.slots = np.zeros(rows, np.int64)
        self.logit_rows = np.zeros(num_logits, np.int64)
        self.thresholds = np.zeros((len(fields(Thresholds)), L, rows if mixes else 1), np.float32)
        self.logits = np.zeros((num_logits, model.vocab_size), np.float32)
        self.selected_experts = np.zeros((L, rows, model.num_experts), np.bool_)
        self.layers_run = np.zeros((L, rows), np.bool_)
        self.exit_layer = np.zeros(rows, np.int64)
        self.new_lengths = np.zeros_like(cache.lengths)
        self.selected_heads = np.zeros((L, rows, model.num_heads), np.bool_)
        self.windows = np.zeros((L, rows), np.int64)
        self.zero_experts = np.zeros((L, rows, model.most_zero_experts), np.bool_)
        self.hidden = np.zeros((rows, model.dim if model.hidden_states else 0), np.float32)
        self.cache = cache
        self.reused = False
        """Whether the arrays are written again by a later pass, so that results are copied."""
        self._graph = graph
        self._heads, self._windows = model.routes_heads, model.has_windows
        self._projects = model.skipped_kv == "project"
        self._layout: list[tuple[int, int, int, int]] = []
        self._in_force: list[Any] = []
        self._binding = graph.session.io_binding()
        grid = (rows, 1) if mixes else (1, rows)
        inputs: dict[str, Any] = {
            "ids": self.ids.reshape(grid),
            "positions": self.positions.reshape(grid),
            "lengths": cache.lengths,
        }
        places = {field.name: place for place, field in enumerate(fields(Thresholds))}
        inputs |= {name: self.thresholds[places[name]] for name in thresholds_of(model)}
        if mixes:
            inputs |= {"slots": self.slots, "logit_rows": self.logit_rows}
        else:
            inputs["num_logits"] = np.asarray(num_logits, np.int64)
        value = graph.ort.OrtValue.ortvalue_from_numpy
        # An OrtValue made from an array on the CPU shares its memory, so the arrays are kept alive here.
        self._arrays = inputs
        self._inputs = {name: value(array) for name, array in inputs.items()}
        self.bind_inputs()
        shapes = {
            "logits": self.logits.reshape((num_logits, -1) if mixes else (1, num_logits, -1)),
            "selected_experts": self.selected_experts.reshape(L, *grid, -1),
            "layers_run": self.layers_run.reshape(L, *grid),
            "exit_layer": self.exit_layer.reshape(grid),
            "new_lengths": self.new_lengths,
            "selected_heads": self.selected_heads.reshape(L, *grid, -1),
            "windows": self.windows.reshape(L, *grid),
            "zero_experts": self.zero_experts.reshape(L, *grid, model.most_zero_experts),
            "hidden": self.hidden.reshape(*grid, self.hidden.shape[1]),
        }
        for name in reported(model):
            self._binding.bind_ortvalue_output(name, value(shapes[name]))
        for (kind, layer), one in (cache.values | states.values).items():
            self._binding.bind_ortvalue_input(f"past_{kind}.{layer}", one)
            self._binding.bind_ortvalue_output(f"present_{kind}.{layer}", one)

    @property
    def bytes(self) -> int:
        """Bytes of the arrays that grow with the rows."""
        arrays = (self.logits, self.selected_experts, self.selected_heads, self.thresholds, self.hidden)
        return sum(one.nbytes for one in arrays)

    def bind_inputs(self) -> None:
        """Bind the input arrays to the graph."""
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)

    def execute(self) -> None:
        """Run the graph on the current content of the input arrays."""
        if self._graph.rebinds:
            self.bind_inputs()
        self._graph.session.run_with_iobinding(self._binding)

    def run(self, work: Works[Work]) -> list[Step]:
        """Compute `work`, whose tokens are the rows of this pass, and record it in its sequences."""
        self._fill(work)
        lengths = self.cache.lengths
        before = lengths.copy()
        self.execute()
        lengths[:] = self.new_lengths
        routes, logits = self._routes(work, before), self.logits.copy() if self.reused else self.logits
        meter, hidden = self._graph.meter, None
        if self.hidden.size:
            hidden = self.hidden.copy() if self.reused else self.hidden
        if len(work) == 1:
            sequence, ids, num_logits = work[0]
            sequence.extend(ids, routes.layers_run)
            return [Step(logits[:num_logits], routes, meter, hidden)]
        steps = []
        row = logit = 0
        for sequence, ids, num_logits in work:
            own = None if hidden is None else hidden[row : row + len(ids)]
            one = between(routes, row, row := row + len(ids), sequence.exits_open)
            sequence.extend(ids, one.layers_run)
            steps.append(Step(logits[logit : (logit := logit + num_logits)], one, meter, own))
        return steps

    def _fill(self, work: Works[Work]) -> None:
        """Write the inputs of `work`; slots, thresholds and rows of logits only where they differ from the last run."""
        row, layout = 0, []
        for sequence, ids, num_logits in work:
            count, begin = len(ids), sequence.computed
            if count == 1:
                self.ids[row] = ids[0]
                self.positions[row] = begin
            else:
                self.ids[row : row + count] = ids
                self.positions[row : row + count] = np.arange(begin, begin + count)
            row += count
            layout.append((sequence.slot, id(sequence.limits), count, num_logits))
        if layout != self._layout:
            self._lay_out(work)
            self._layout = layout

    def _lay_out(self, work: Works[Work]) -> None:
        row = logit = 0
        for sequence, ids, num_logits in work:
            end = row + len(ids)
            self.slots[row:end] = sequence.slot
            columns = slice(row, end) if self._graph.mixes_sequences else slice(1)  # alone, all rows share one
            self.thresholds[:, :, columns] = sequence.limits[:, :, None]
            self.logit_rows[logit : logit + num_logits] = np.arange(end - num_logits, end)
            row, logit = end, logit + num_logits
        self._in_force = [one.sequence.limits for one in work]  # alive, so that no other array takes their identity

    def _routes(self, work: Works[Work], before: Ints) -> Routes:
        """Return the routes of all rows, as arrays that no later run writes."""
        again = self.reused
        heads = windows = zero = None
        if self._heads:
            heads = self.selected_heads.copy() if again else self.selected_heads
        if self.zero_experts.shape[2]:
            zero = self.zero_experts.copy() if again else self.zero_experts
        keys = self._keys(work, before)
        if self._windows:
            windows = self.windows.copy() if again else self.windows
            keys = np.where(windows > 0, np.minimum(keys, windows), keys)
        return Routes(
            selected_experts=self.selected_experts.copy() if again else self.selected_experts,
            layers_run=self.layers_run.copy() if again else self.layers_run,
            exit_layer=self.exit_layer.copy() if again else self.exit_layer,
            keys=keys,
            positions=self.positions.copy() if again else self.positions,
            exits_open=work[0].sequence.exits_open,
            selected_heads=heads,
            windows=windows,
            zero_experts=zero,
        )

    def _keys(self, work: Works[Work], before: Ints) -> Any:
        """Count the tokens that each layer held for each row, itself among them, (L, N).

        Under `none` a skipped token is absent from the layer's cache, under `project` every token is present.
        """
        if self.rows == 1:
            return before[:, work[0].sequence.slot, None] + (1 if self._projects else self.layers_run)
        if self._projects:
            return (self.positions + 1)[None].repeat(len(before), 0)
        if len(work) == self.rows:
            return before[:, self.slots] + self.layers_run
        keys = np.empty(self.layers_run.shape, np.int64)
        row = 0
        for sequence, ids, _ in work:
            here = slice(row, row := row + len(ids))
            np.cumsum(self.layers_run[:, here], axis=1, out=keys[:, here])
            keys[:, here] += before[:, sequence.slot, None]
        return keys


class Passes:
    """The passes over one memory, each bound when its number of rows and logits is first used, the last used kept."""

    def __init__(self, graph: Graph, cache: Cache, states: States) -> None:
        self.cache = cache
        self.states = states
        self._graph = graph
        self._passes: dict[tuple[int, int], Pass] = {}
        self._bytes = 0

    def of(self, rows: int, num_logits: int) -> Pass:
        """Return the pass for this number of rows and logits."""
        shape = (rows, num_logits)
        one = self._passes.get(shape)
        if one is None:
            one = Pass(self._graph, self.cache, self.states, rows, num_logits)
            if one.bytes <= KEPT_BYTES // 4:
                one.reused = True
                self._passes[shape] = one
                self._bytes += one.bytes
                while self._bytes > KEPT_BYTES or len(self._passes) > KEPT_PASSES:
                    self._bytes -= self._passes.pop(next(iter(self._passes))).bytes
        elif len(self._passes) > 1:
            self._passes[shape] = self._passes.pop(shape)  # to the end: the last used
        return one
