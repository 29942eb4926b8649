"""Time of one token in each mixer, by our operators, decoded at several contexts or in a part of a prompt.

    python benchmarks/mixers.py
    python benchmarks/mixers.py --tokens 256

One node is timed: the norm, the products, the recurrence or the attention over a full cache, and the residual. Weights
are random and stay in the processor's caches as far as they fit, so a line compares mixers, not machines. Rounds of all
lines are interleaved. See docs/decisions/0049.
"""

import time
from statistics import median, quantiles
from typing import Any

import click
import numpy as np
import onnxruntime
from onnx import helper

from adaptive_lm.export.fused.attention import attention
from adaptive_lm.export.fused.mixers import mixer
from adaptive_lm.export.graph.builder import FLOAT, INT64, IR_VERSION, OPSET, Graph
from adaptive_lm.export.graph.weights import Weights
from adaptive_lm.export.source import weights_of
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.runtime.ops.library import load_library
from adaptive_lm.runtime.ops.probe import DOMAIN, VERSION
from adaptive_lm.train.model import ModelConfig, Transformer

MIXERS = ("attention", "retnet", "mamba2", "gated_delta", "rwkv7")
CALLS = 5  # per measurement, so that the resolution of the clock does not matter


@click.command()
@click.option("--dim", default=768, show_default=True, help="Width; heads of attention and of the states are 64 wide.")
@click.option("--contexts", default="64,2048,8192", show_default=True, help="Numbers of tokens, separated by commas.")
@click.option("--precision", default="int8", show_default=True, type=click.Choice(["fp32", "bf16", "int8", "int4"]))
@click.option("--tokens", type=click.IntRange(min=1), default=1, show_default=True, help="Tokens of a pass.")
@click.option("--rounds", type=click.IntRange(min=2), default=60, show_default=True, help="Rounds of every line.")
def main(dim: int, contexts: str, precision: Precision, tokens: int, rounds: int) -> None:
    """Print microseconds of the thread per token: median, middle half, and ratios to the first context."""
    lengths = [int(context) for context in contexts.split(",")]
    layers = {(name, length): Layer(name, dim, precision, length, tokens) for name in MIXERS for length in lengths}
    took: dict[tuple[str, int], list[float]] = {key: [] for key in layers}
    for turn in range(-5, rounds):
        for key, layer in layers.items():
            micros = layer.time()
            if turn >= 0:
                took[key].append(micros)
    click.echo(f"{dim} wide, {dim // 64} heads, {precision}, kernel {load_library().kernel}, one thread")
    click.echo(
        f"{'mixer':12} " + " ".join(f"{f'{length} tokens':>24}" for length in lengths) + "  to the first  to attention"
    )
    for name in MIXERS:
        cells = " ".join(f"{_spread(took[name, length]):>24}" for length in lengths)
        first = " ".join(f"{_ratio(took[name, length], took[name, lengths[0]]):.2f}" for length in lengths[1:])
        peer = " ".join(f"{_ratio(took[name, length], took['attention', length]):.2f}" for length in lengths)
        click.echo(f"{name:12} {cells}  {first:>12}  {peer}")


class Layer:
    """One node with its cache or states, and the tokens of a pass."""

    def __init__(self, name: str, dim: int, precision: Precision, context: int, tokens: int) -> None:
        heads = dim // 64
        config = ModelConfig.model_validate({
            "vocab_size": 8, "context_length": context + tokens, "dim": dim, "num_layers": 1, "num_heads": heads,
            "num_kv_heads": heads, "mixers": name,
        })  # fmt: skip
        wanted = ("layers.0.attention", "layers.0.mixer")
        state = {key: value for key, value in weights_of(Transformer(config)).items() if key.startswith(wanted)}
        g, weights = Graph("layer"), Weights(state, Precisions.of(precision))
        mixed = (attention if name == "attention" else mixer)(g, weights, config, 0, "x", "")
        if name == "attention":
            cell = (1, heads, context + tokens, 64)
            states = {f"{part}.0": np.zeros(cell, np.float32) for part in ("key", "value")}
        else:
            states = {f"{part}.0": np.zeros((1, *shape), np.float32) for part, shape in config.state_shapes(0).items()}
        inputs: dict[str, Any] = {
            "x": np.random.default_rng(0).standard_normal((tokens, dim)).astype(np.float32),
            "positions": context + np.arange(tokens)[None],
            "slots": np.array([0]),
            "lengths": np.array([[context]]),
        }
        self._tokens = tokens
        self._session = _session(g, mixed.h, mixed.new_lengths, states)
        named = {entry.name for entry in self._session.get_inputs()}
        self._binding = self._session.io_binding()
        self._held: list[onnxruntime.OrtValue] = []
        for key, value in inputs.items():
            if key in named:
                self._binding.bind_ortvalue_input(key, self._hold(value))
        for key, value in states.items():
            held = self._hold(value)
            self._binding.bind_ortvalue_input(f"past_{key}", held)
            self._binding.bind_ortvalue_output(f"present_{key}", held)
        self._binding.bind_output(mixed.h)
        self._binding.bind_output(mixed.new_lengths)

    def _hold(self, value: Any) -> onnxruntime.OrtValue:
        self._held.append(onnxruntime.OrtValue.ortvalue_from_numpy(value))
        return self._held[-1]

    def time(self) -> float:
        """Return the microseconds of one token."""
        begin = time.thread_time_ns()
        for _ in range(CALLS):
            self._session.run_with_iobinding(self._binding)
        return (time.thread_time_ns() - begin) / CALLS / self._tokens / 1e3


def _session(g: Graph, h: str, new_lengths: str, states: dict[str, Any]) -> onnxruntime.InferenceSession:
    (node,) = g.nodes
    types = dict.fromkeys(("positions", "slots", "lengths", new_lengths), INT64)
    given = [name for name in node.input if name and name not in g.initializers]
    outputs = [h, new_lengths, *(f"present_{name}" for name in states)]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(name, types.get(name, FLOAT), None) for name in given],
        [helper.make_tensor_value_info(name, types.get(name, FLOAT), None) for name in outputs],
        list(g.initializers.values()),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    load_library().register(options)
    content = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _spread(values: list[float]) -> str:
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.1f} ({low:.1f}-{high:.1f})"


def _ratio(values: list[float], others: list[float]) -> float:
    """Return the median ratio of rounds that ran side by side."""
    return median(a / b for a, b in zip(values, others, strict=True))


if __name__ == "__main__":
    main()
