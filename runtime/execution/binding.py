"""One call of the graph: its input and output arrays, bound once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..format.manifest import Manifest, Model
from .kv_cache import BATCH, THRESHOLDS, Cache, cache_shapes
from .routes import Bools, Ints, Routes


class Pass:
    """One call of the graph: its arrays, and their binding.

    Args:
        ort: The module onnxruntime.
        session: The session of ONNX Runtime.
        manifest: The model.
        cache: The caches that the call reads and writes.
        T: Tokens of the call.
        num_logits: Tokens, from the last backwards, whose logits are computed.

    The graph of our operators takes each token as a row with its own slot and thresholds; here all are in slot 0.
    """

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
        self.selected_heads = np.zeros((L, BATCH, T, model.num_heads), np.bool_)
        self.windows = np.zeros((L, BATCH, T), np.int64)
        self._heads, self._windows = model.routes_heads, model.has_windows
        # Under `none` a skipped token is absent from the layer's cache, under `project` every token is present.
        self._gained = np.arange(1, T + 1) if model.skipped_kv == "project" else None
        self._session = session
        self._binding = session.io_binding()
        self.rebinds = next(iter(cache.values.values())).device_name() != "cpu"
        """Whether the inputs are bound again before every run."""
        inputs = {"ids": self.ids, "positions": self.positions, **cache.inputs()}
        outputs = {name: getattr(self, name) for name in reported(model)}
        # (L, T) of the rows, and (L, 1) of the cache
        self._thresholds: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        if "slots" in {value.name for value in session.get_inputs()}:
            outputs = {name: _by_row(name, array) for name, array in outputs.items()}
            thresholds = {name: array for name, array in cache.inputs().items() if name != "lengths"}
            if T > 1:
                self._thresholds = [(np.zeros((L, T), np.float32), array) for array in thresholds.values()]
                inputs |= dict(zip(thresholds, (rows for rows, _ in self._thresholds), strict=True))
            inputs |= {"ids": self.ids.reshape(T, 1), "positions": self.positions.reshape(T, 1)}
            inputs |= {"slots": np.zeros(T, np.int64), "logit_rows": np.arange(T - num_logits, T)}
        else:
            inputs["num_logits"] = np.asarray(num_logits, np.int64)
        # An OrtValue made from an array on the CPU shares its memory, so the arrays are kept alive here.
        self._inputs = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        self._keep = (inputs, outputs, cache)
        self.bind_inputs()
        for name, array in outputs.items():
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        for (kind, layer), value in cache.values.items():
            self._binding.bind_ortvalue_input(f"past_{kind}.{layer}", value)
            self._binding.bind_ortvalue_output(f"present_{kind}.{layer}", value)

    def run(self) -> None:
        """Run the graph on the current content of the input arrays."""
        for rows, one in self._thresholds:
            rows[:] = one
        if self.rebinds:
            self.bind_inputs()  # on CUDA, binding copies the inputs to the device
        self._session.run_with_iobinding(self._binding)

    def routes(self, before: Ints, exits_open: Bools) -> Routes:
        """Return the routes of the last run.

        Args:
            before: Tokens that the cache of each layer held before it, (L,).
            exits_open: Whether the exit check of each layer was made, (L,).
        """
        layers_run = self.layers_run[:, 0].copy()  # (L, T)
        keys = before[:, None] + (layers_run.cumsum(axis=1) if self._gained is None else self._gained)
        windows = self.windows[:, 0].copy() if self._windows else None
        return Routes(
            selected_experts=self.selected_experts[:, 0].copy(),
            layers_run=layers_run,
            exit_layer=self.exit_layer[0].copy(),
            keys=keys if windows is None else np.where(windows > 0, np.minimum(keys, windows), keys),
            positions=self.positions[0].copy(),
            exits_open=exits_open,
            selected_heads=self.selected_heads[:, 0].copy() if self._heads else None,
            windows=windows,
        )

    def bind_inputs(self) -> None:
        """Bind the input arrays to the graph."""
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)


def _by_row(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """View an output as the graph with slots gives it: (.., 1, T, ..) as (.., T, 1, ..), logits (1, R, V) as (R, V)."""
    if name == "new_lengths":
        return array
    if name == "logits":
        return array[0]
    axis = 0 if name == "exit_layer" else 1
    *before, one, T = array.shape[: axis + 2]
    return array.reshape(*before, T, one, *array.shape[axis + 2 :])


def reported(model: Model) -> list[str]:
    """Name the outputs of the graph other than caches."""
    names = ["logits", "selected_experts", "layers_run", "exit_layer", "new_lengths"]
    return names + ["selected_heads"] * model.routes_heads + ["windows"] * model.has_windows


def expected_names(manifest: Manifest, slots: bool) -> tuple[set[str], set[str]]:
    """Name the inputs and outputs that the graph must have; `slots` for that of our operators."""
    model = manifest.model
    inputs = {"ids", "positions", "lengths", *THRESHOLDS, *["head_top_p"] * model.dials_heads}
    inputs |= {"slots", "logit_rows"} if slots else {"num_logits"}
    caches = cache_shapes(model, 1)
    inputs |= {f"past_{kind}.{layer}" for kind, layer in caches}
    return inputs, {*reported(model), *(f"present_{kind}.{layer}" for kind, layer in caches)}
