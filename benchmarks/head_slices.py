"""Width from which it is faster to compute only the heads that a token chose.

    python benchmarks/head_slices.py

Times the attention of one decoded token with half of its heads chosen, in three executions of the same numbers:

- `masked`: all heads in one product, times their weights.
- `sliced`: each head's rows of q and columns of o multiply the rows of the tokens that chose it, which may be none.
- `ifs`: one If per head, which also skips its attention, but must copy its keys and values out of the cache.

The result is `SLICED_FROM` in export/model/attention/heads.py; see docs/decisions/0010.
"""

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import click
import numpy as np
import onnxruntime
from onnx import helper

from adaptive_lm.export.graph.builder import BOOL, FLOAT, IR_VERSION, OPSET, Graph
from adaptive_lm.export.graph.weights import Weights
from adaptive_lm.export.model.attention.attention import Attention, Cache, Cells, Shared, spare_row
from adaptive_lm.export.model.attention.heads import head_router
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.train.model.config.model import ModelConfig
from adaptive_lm.train.model.config.sections import HeadsConfig

EXECUTIONS = ("masked", "sliced", "ifs")
SIZES = [
    (128, 8, 32), (256, 8, 32), (256, 8, 64), (512, 16, 32), (512, 8, 64), (512, 8, 128), (1024, 16, 64), (1024, 8, 128)
]  # fmt: skip
CALLS = 5  # per measurement, so that the resolution of the clock does not matter


@click.command()
@click.option("--rounds", type=click.IntRange(min=2), default=60, show_default=True, help="Rounds per line.")
@click.option("--context", default="64,512", show_default=True, help="Numbers of keys, separated by commas.")
def main(rounds: int, context: str) -> None:
    """Print microseconds per token: median, and the range of the middle half of the interleaved rounds."""
    click.echo(f"{'precision':9} {'dim':>5} {'heads':>5} {'width':>5} {'weights':>8} {'keys':>5}  " + " ".join(
        f"{name:>22}" for name in EXECUTIONS) + "  sliced/masked")  # fmt: skip
    for precision in ("fp32", "int8"):
        for dim, heads, width in SIZES:
            for keys in map(int, context.split(",")):
                took = measure(dim, heads, width, precision, keys, rounds)
                ratio = median(s / m for s, m in zip(took["sliced"], took["masked"], strict=True))
                cells = " ".join(f"{_spread(took[name]):>22}" for name in EXECUTIONS)
                click.echo(
                    f"{precision:9} {dim:5} {heads:5} {width:5} {2 * dim * width:8} {keys:5}  {cells}  {ratio:.2f}"
                )


def measure(dim: int, heads: int, width: int, precision: Precision, keys: int, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of each round, by execution."""
    config = ModelConfig(
        vocab_size=8,
        dim=dim,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=heads // 2,
        head_dim=width,
        heads=HeadsConfig(routing="top_k", heads_per_token=heads // 2),
    )
    random = np.random.default_rng(0)
    cache = (1, heads // 2, keys, width)
    feeds: dict[str, Any] = {
        "x": random.normal(size=(1, dim)),
        "key": random.normal(size=cache),
        "value": random.normal(size=cache),
    }
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()} | {"seen": np.ones((1, 1, 1, keys), bool)}
    runs = {name: _bound(_session(config, name, precision), feeds) for name in EXECUTIONS}
    outputs = [run() for run in runs.values()]
    assert all(np.allclose(outputs[0], other, atol=1e-4 if precision == "fp32" else 0.2) for other in outputs)
    took: dict[str, list[float]] = {name: [] for name in EXECUTIONS}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            for _ in range(CALLS):
                run()
            took[name].append((time.perf_counter() - begin) / CALLS * 1e6)
    return took


def _session(config: ModelConfig, execution: str, precision: Precision) -> Any:
    random = np.random.default_rng(1)
    dim, heads, width, name = config.dim, config.num_heads, config.resolved_head_dim, "layers.0.attention"
    state = {
        f"{name}.q.weight": random.normal(size=(heads * width, dim)) * dim**-0.5,
        f"{name}.o.weight": random.normal(size=(dim, heads * width)) * dim**-0.5,
        f"{name}.q_norm.weight": np.ones(width),
        f"{name}.head_router.weight": random.normal(size=(heads, dim)) * dim**-0.5,
    }
    g = Graph(execution)
    if execution == "ifs":
        _ifs(g, state, config, precision)
    else:
        shapes = (g.int64(1, -1, heads, width), "")
        shared = Shared([None], shapes, [0], [None], "sliced" if execution == "sliced" else "masked")
        attention = Attention(Weights(state, Precisions.of(precision)), _without_positions(config), 0, shared)
        seen = spare_row(g, attention.weights, "seen")
        cells = Cells(None, None, "", "", seen)
        g.op("Identity", attention.attend(g, "x", cells, Cache("key", "value"), "").out, result="y")
    value = helper.make_tensor_value_info
    cache: list[int | str | None] = [1, config.num_kv_heads, "C", width]
    inputs = [value("x", FLOAT, ["n", dim]), value("key", FLOAT, cache), value("value", FLOAT, cache)]
    inputs.append(value("seen", BOOL, [1, 1, "n", "C"]))
    graph = helper.make_graph(g.nodes, "g", inputs, [value("y", FLOAT, ["n", dim])], list(g.initializers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _without_positions(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"attention": config.attention.model_copy(update={"positions": "none"})})


def _ifs(g: Graph, state: dict[str, Any], config: ModelConfig, precision: Precision) -> None:
    """Write one branch per head, with its slices of the weights, its keys and values, and its term of the sum."""
    heads, width, group, name = config.num_heads, config.resolved_head_dim, 2, "layers.0.attention"
    whole = {part: state.pop(f"{name}.{part}.weight") for part in ("q", "o")}
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        state |= {f"h.q{head}.weight": whole["q"][rows], f"h.o{head}.weight": whole["o"][:, rows]}
    weights = Weights(state, Precisions.of(precision))
    norm = weights.parameter(g, f"{name}.q_norm.weight")
    routes = head_router(g, weights, f"{name}.head_router", config, "x", "")
    someone = g.op("Greater", g.op("ReduceMax", routes.selected, g.int64(0), keepdims=0), g.scalar(0.0))
    conditions = g.ops("Split", someone, outputs=heads, axis=0, num_outputs=heads)
    shares = g.ops("Split", routes.weights, outputs=heads, axis=1, num_outputs=heads)
    seen, total = spare_row(g, weights, "seen"), g.op("Mul", "x", g.scalar(0.0))

    def attend(head: int, total: str) -> Callable[[Graph], list[str]]:
        def write(b: Graph) -> list[str]:
            q = b.op("Unsqueeze", weights.linear(b, "x", f"h.q{head}.weight"), b.int64(0, 1))
            q = b.op("RMSNormalization", q, norm, axis=-1, epsilon=config.norm_eps)
            if precision != "fp32":
                q = b.op("Pad", q, b.int64(0, 1), "", b.int64(2))
            key, value = (b.op("Gather", part, b.int64(head // group), axis=1) for part in ("key", "value"))
            mixed = b.op("Attention", q, key, value, seen)
            if precision != "fp32":
                mixed = b.op("Slice", mixed, b.int64(0), b.int64(-1), b.int64(2))
            mixed = b.op("Mul", b.op("Squeeze", mixed, b.int64(0, 1)), shares[head])
            return [b.op("Add", total, weights.linear(b, mixed, f"h.o{head}.weight"))]

        return write

    for head in range(heads):
        skip = (lambda unchanged: lambda b: [b.op("Identity", unchanged)])(total)
        (total,) = g.branch(conditions[head], f"head.{head}", [FLOAT], attend(head, total), skip)
    g.op("Identity", total, result="y")


def _bound(session: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
    binding = session.io_binding()
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    out = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(feeds["x"]))
    binding.bind_ortvalue_output("y", out)

    def run() -> Any:
        session.run_with_iobinding(binding)
        return out.numpy().copy() if values else None

    return run


def _spread(took: list[float]) -> str:
    low, _, high = quantiles(took, n=4)
    return f"{median(took):.0f} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    main()
