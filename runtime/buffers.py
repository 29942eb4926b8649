"""The memory that one generation and the graph share: caches, thresholds, and the inputs and outputs of a pass.

L layers, B sequences, T tokens, K key/value heads, C capacity, V vocabulary, E experts. Every array here is bound once;
ONNX Runtime reads and writes it where it lies, and Python reads and writes the same bytes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import Manifest

BATCH = 1  # the graph takes more at T = 1; this runtime runs one sequence


class Cache:
    """Keys and values of every layer, how many tokens each holds, and the thresholds in force.

    Past and present are one OrtValue: the graph writes new keys in place, and nothing is copied as the text grows.
    """

    def __init__(self, ort: Any, manifest: Manifest, device: str, capacity: int) -> None:
        model = manifest.model
        L = model.num_layers
        shape = (BATCH, model.num_kv_heads, capacity, model.head_dim)
        self.capacity = capacity
        self.lengths = np.zeros((L, BATCH), np.int64)
        self.router_top_p = np.ones((L, BATCH), np.float32)
        self.depth_threshold = np.zeros((L, BATCH), np.float32)
        self.exit_threshold = np.ones((L, BATCH), np.float32)
        # Zeros, not whatever was there: a masked position still takes part as 0 * value, and 0 * nan is nan.
        self.values = {
            (kind, layer): ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), device, 0)
            for kind in ("key", "value")
            for layer in range(L)
        }

    def inputs(self) -> dict[str, NDArray[Any]]:
        return {
            "lengths": self.lengths,
            "router_top_p": self.router_top_p,
            "depth_threshold": self.depth_threshold,
            "exit_threshold": self.exit_threshold,
        }


class Pass:
    """One call of the graph with T tokens, logits of the last `num_logits`: its arrays, and the binding to them."""

    def __init__(self, ort: Any, session: Any, manifest: Manifest, cache: Cache, T: int, num_logits: int) -> None:
        model = manifest.model
        L = model.num_layers
        self.ids = np.zeros((BATCH, T), np.int64)
        self.positions = np.zeros((BATCH, T), np.int64)
        self.logits = np.zeros((BATCH, num_logits, model.vocab_size), np.float32)
        self.selected_experts = np.zeros((L, BATCH, T, model.num_experts), np.bool_)
        self.layers_run = np.zeros((L, BATCH, T), np.bool_)
        self.exit_layer = np.zeros((BATCH, T), np.int64)
        self.new_lengths = np.zeros((L, BATCH), np.int64)
        self._session = session
        self._binding = session.io_binding()
        self._on_cpu = next(iter(cache.values.values())).device_name() == "cpu"
        inputs = {"ids": self.ids, "positions": self.positions, "num_logits": np.asarray(num_logits, np.int64)}
        # An OrtValue made from an array on the CPU is that array; kept here, for it lives no longer than its owner.
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in (inputs | cache.inputs()).items()
        }
        self._keep = (inputs, cache)
        self._bind_inputs()
        for name in ("logits", "selected_experts", "layers_run", "exit_layer", "new_lengths"):
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(getattr(self, name)))
        for (kind, layer), value in cache.values.items():
            self._binding.bind_ortvalue_input(f"past_{kind}.{layer}", value)
            self._binding.bind_ortvalue_output(f"present_{kind}.{layer}", value)

    def run(self) -> None:
        """Run the graph on what the input arrays hold now."""
        if not self._on_cpu:
            self._bind_inputs()  # for CUDA, binding is what copies them to the device
        self._session.run_with_iobinding(self._binding)

    def _bind_inputs(self) -> None:
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)


def expected_names(manifest: Manifest) -> tuple[set[str], set[str]]:
    """Names of the inputs and outputs that a graph of this format has."""
    layers = range(manifest.model.num_layers)
    inputs = {"ids", "positions", "lengths", "router_top_p", "depth_threshold", "exit_threshold", "num_logits"}
    outputs = {"logits", "selected_experts", "layers_run", "exit_layer", "new_lengths"}
    inputs |= {f"past_{kind}.{layer}" for kind in ("key", "value") for layer in layers}
    outputs |= {f"present_{kind}.{layer}" for kind in ("key", "value") for layer in layers}
    return inputs, outputs
