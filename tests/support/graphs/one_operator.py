"""One operator of ours in ONNX Runtime: a model of one node, built from the inputs that it is to run on."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from adaptive_lm.runtime.ops.probe import DOMAIN, VERSION

from ..operators.kernels import LIBRARY, open_library

Array = NDArray[Any]

PER_TOKEN = ("per_token_weight", "per_token_bias")
NORM = ("norm", "norm_bias")
NORMS = (*NORM, "post_norm", "post_norm_bias")
MIXER = ("x", "runs", "slots", "lengths", *NORMS, "past_state", "past_conv", "o")
INPUTS: dict[str, tuple[str, ...]] = {
    "Embedding": ("ids", "table", "positions", "learned_positions"),
    "DepthRouter": ("x", "alive", "depth_threshold", "weight", "bias", *PER_TOKEN),
    "FeedForward": (
        *("h", "x", "runs", "gate", "router_top_p", *NORMS, "router", *PER_TOKEN),
        *("gate_up", "down", "shared_gate_up", "shared_down", "router_ratio", "router_bias", "selection_bias"),
        *("gate_up_bias", "down_bias", "shared_gate_up_bias", "shared_down_bias", "shared_gate"),
        *("zero_mix", "zero_constants"),
    ),
    "Exit": ("x", "alive", "exit_layer", "exit_threshold", *NORM, "weight", "bias", "head"),
    "Logits": ("x", *NORM, "head", "logit_rows"),
    "HeadRouter": ("x", "runs", *NORM, "head_top_p", "weight", "balance", *PER_TOKEN),
    "Windows": ("x", "runs", "slots", "lengths", *NORM, "weight", "bias", "levels", "by_place"),
    "RetNet": (*MIXER, "positions", "q", "k", "v", "gate", "decay", "cos", "sin"),
    "Mamba2": (*MIXER, "in", "conv_weight", "conv_bias", "dt_bias", "rate", "skip", "inner_norm"),
    "GatedDelta": (*MIXER, "q", "k", "v", "gate", "conv_weight", "forget", "write", "dt_bias", "rate", "head_norm"),
    "Rwkv7": (
        *(*MIXER, "shift", "r", "k", "v", "decay_in", "decay_out", "decay_bias", "rate_in", "rate_out", "rate_bias"),
        *("gate_in", "gate_out", "removal_key", "key_rate", "bonus", "head_norm", "head_norm_bias"),
    ),
}
"""The inputs of each operator, in order."""
MIXED: dict[str, Any] = {"h": np.float32, "new_lengths": np.int64, "present_state": np.float32}
OUTPUTS: dict[str, dict[str, Any]] = {
    "Embedding": {"x": np.float32},
    "DepthRouter": {"runs": np.bool_, "gate": np.float32},
    "FeedForward": {"out": np.float32, "selected": np.bool_},
    "Exit": {"alive": np.bool_, "exit_layer": np.int64},
    "Logits": {"logits": np.float32},
    "HeadRouter": {"selected": np.bool_, "head_weights": np.float32},
    "Windows": {"windows": np.int64},
    "RetNet": MIXED,
    "Mamba2": MIXED | {"present_conv": np.float32},
    "GatedDelta": MIXED | {"present_conv": np.float32},
    "Rwkv7": MIXED | {"present_conv": np.float32},
}
"""The outputs of each operator and their element types, in order."""


class Operator:
    """A session whose graph is one node.

    Inputs that are not given are absent from the node, and so are the outputs named in `without`.
    """

    def __init__(
        self, name: str, inputs: Mapping[str, Array], threads: int = 1, without: Sequence[str] = (), **attributes: Any
    ) -> None:
        assert set(inputs) <= set(INPUTS[name]), f"{name} has the inputs {INPUTS[name]}, found {tuple(inputs)}"
        places = [key if key in inputs else "" for key in INPUTS[name]]
        while places and not places[-1]:
            places.pop()
        # an input and an output may have one name in the operator, not in a graph
        outputs = {f"{key}_out" if key in inputs else key: dtype for key, dtype in OUTPUTS[name].items()}
        outputs = {("" if key in without else key): dtype for key, dtype in outputs.items()}
        node = helper.make_node(name, places, list(outputs), name=f"a_{name}", domain=DOMAIN, **attributes)
        graph = helper.make_graph(
            [node],
            name,
            [_value(key, array.dtype) for key, array in inputs.items()],
            [_value(key, np.dtype(dtype)) for key, dtype in outputs.items() if key],
        )
        opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
        self.session = ort.InferenceSession(
            model.SerializeToString(), options(threads), providers=["CPUExecutionProvider"]
        )

    def __call__(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the outputs."""
        return tuple(self.session.run(None, dict(inputs)))


def options(threads: int = 1) -> ort.SessionOptions:
    """Return the options of a session that knows our operators and prints no errors, which the tests provoke."""
    result = ort.SessionOptions()
    result.log_severity_level = 4
    result.intra_op_num_threads = threads
    result.register_custom_ops_library(str(LIBRARY))
    return result


def run(name: str, inputs: Mapping[str, Array], threads: int = 1, **attributes: Any) -> tuple[Array, ...]:
    """Run an operator once."""
    return Operator(name, inputs, threads, **attributes)(inputs)


def bytes_read() -> int:
    """Return the bytes of packed weights that products have read since the library was loaded."""
    counter = open_library().adaptive_ops_bytes_read
    counter.restype = ctypes.c_int64
    return int(counter())


def rows(inputs: Mapping[str, Array], names: Sequence[str], part: slice) -> dict[str, Array]:
    """Return the inputs with only some rows of those named."""
    return {key: array[part] if key in names else array for key, array in inputs.items()}


def _value(name: str, dtype: np.dtype[Any]) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
