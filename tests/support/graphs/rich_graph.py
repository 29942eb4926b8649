"""The tiny graph with every other mechanism: routed heads, windows in rings, counted cells; from tables as well.

Three layers, four experts, four query heads chosen by mass, a window of 8 in layer 0 and one of each token's own in
layer 2, a depth router in layer 1, an exit after layer 0, CoPE's counted cells in layers 1 and 2, policy `project`.
The more of it runs, the surer it is of the next byte of STORY. `expected` computes its outputs in plain numpy.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from support.graphs import tiny_graph
from support.graphs.tiny_graph import TABLES, E, K, L, V

H, W, CONTEXT, WINDOW, WIDEST = 4, 2, 512, 8, 12
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
STORY = "Mountains form where plates meet; the crust folds, and rivers carve it. Wind and ice wear the peaks down. "
GAIN = {"expert": 0.5, "head": 0.02, "layer": 1.0}  # what each adds to the sureness of a token

_random = np.random.default_rng(11)
_heads = np.sort(_random.dirichlet(np.full(H, 0.7), size=V), axis=1)[:, ::-1]
HEAD_MASS = (np.cumsum(_heads, axis=1) - _heads).astype(np.float32)  # (V, H), of heads 0 to 3 in order of rank
OWN_WINDOW = _random.integers(2, WIDEST + 1, size=V)  # (V,) of layer 2
FOLLOWS = np.zeros((V, V), np.float32)  # 1 where one byte follows another in STORY
FOLLOWS[list(STORY.encode()), list((STORY[1:] + STORY[:1]).encode())] = 1


class Expected(NamedTuple):
    """The outputs of the graph for a whole sequence."""

    logits: NDArray[Any]  # (T, V)
    experts: NDArray[Any]  # (L, T, E)
    heads: NDArray[Any]  # (L, T, H)
    run: NDArray[Any]  # (L, T)
    exits: NDArray[Any]  # (T,)
    windows: NDArray[Any]  # (L, T)


def expected(ids: list[int], top_p: float, depth: float, leave: float, head_top_p: float) -> Expected:
    """Return the expected outputs at the same thresholds in every layer."""
    t = np.array(ids)
    _, experts, run, exits = tiny_graph.expected(ids, top_p, depth, leave)
    heads = ((HEAD_MASS[t] < np.float32(head_top_p)) | (head_top_p >= 1))[None] & run[:, :, None]
    windows = np.stack([np.full(len(t), WINDOW), np.zeros(len(t), int), np.where(run[2], OWN_WINDOW[t], 0)])
    seen = np.array([t[max(0, i + 1 - WINDOW) : i + 1].sum() for i in range(len(t))])
    counted = run[1].cumsum()  # of layer 1, which has no window
    sure = GAIN["expert"] * experts.sum((0, 2)) + GAIN["head"] * heads.sum((0, 2)) + GAIN["layer"] * run.sum(0)
    logits = TABLES["logits"][t] + (seen + counted)[:, None].astype(np.float32) * TABLES["drift"]
    return Expected(logits + sure[:, None].astype(np.float32) * FOLLOWS[t], experts, heads, run, exits, windows)


def graph() -> onnx.ModelProto:
    """Build the graph; its rings are written with TensorScatter, and read by the places of their cells."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {f"table.{name}": value for name, value in TABLES.items()}
    constants |= {"table.heads": HEAD_MASS, "table.window": OWN_WINDOW, "table.follows": FOLLOWS}
    constants |= {f"{i}": np.array(i) for i in range(3)} | {f"[{i}]": np.array([i]) for i in range(-1, 4)}
    constants |= {"far": np.array([2**40]), "window0": np.array(WINDOW), "none": np.array(-1), "1.0": np.float32(1)}
    constants |= {f"gain.{name}": np.float32(value) for name, value in GAIN.items()}
    constants |= {"column": np.array([1, K, -1, 1]), "pair": np.array([1, K, 1, W]), "[1,2]": np.array([1, 2])}

    def op(kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        output = out or f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def level(name: str, layer: int) -> str:
        return op("Gather", name, str(layer))  # (1,)

    def stack(rows: list[str], out: str) -> str:
        return op("Concat", *(op("Unsqueeze", row, "[0]") for row in rows), out=out, axis=0)

    left = op("Greater", op("Gather", "table.confidence", "ids"), level("exit_threshold", 0))  # (1, T)
    stays = op("Not", left)
    scored = op("GreaterOrEqual", op("Gather", "table.depth_score", "ids"), level("depth_threshold", 1))
    runs = [op("Or", stays, left), op("And", stays, scored), stays]
    stack(runs, "layers_run")
    op("Where", left, "0", "none", out="exit_layer")

    def chosen(table: str, levels: str, out: str, *, whole: bool) -> str:
        rows = []
        for i, run in enumerate(runs):
            kept = op("Less", op("Gather", table, "ids"), level(levels, i))  # (1, T, n)
            if whole:
                kept = op("Or", kept, op("GreaterOrEqual", level(levels, i), "1.0"))
            rows.append(op("And", kept, op("Unsqueeze", run, "[2]")))
        return stack(rows, out)

    chosen("table.mass_before", "router_top_p", "selected_experts", whole=False)
    chosen("table.heads", "head_top_p", "selected_heads", whole=True)
    zero = op("Mul", "ids", "0")
    own = op("Where", runs[2], op("Gather", "table.window", "ids"), zero)
    stack([op("Add", zero, "window0"), zero, own], "windows")

    as_float = op("Cast", "ids", to=FLOAT)  # (1, T)
    written = op("Expand", op("Reshape", as_float, "column"), "pair")
    for i in range(L):
        mode = "circular" if i != 1 else "linear"
        for kind in ("key", "value"):
            op("TensorScatter", f"past_{kind}.{i}", written, level("lengths", i), out=f"present_{kind}.{i}", axis=2,
               mode=mode)  # fmt: skip
        if i:
            ran = op("Reshape", op("Cast", runs[i], to=FLOAT), "column")
            op("TensorScatter", f"past_counted.{i}", ran, level("lengths", i), out=f"present_counted.{i}", axis=2,
               mode=mode)  # fmt: skip
    op("Add", "lengths", op("Shape", "ids", start=1, end=2), out="new_lengths")

    def summed(cache: str, layer: int, window: str) -> str:
        """Sum for each token the numbers in the cells that it sees, (T,)."""
        held = op("Reshape", op("Slice", cache, "[0]", "[1]", "[3]"), "[-1]")  # (R,): first of the head's numbers
        cells = op("Shape", held)
        last = op("Sub", op("Add", level("lengths", layer), op("Shape", "ids", start=1, end=2)), "[1]")
        cell = op("Range", "0", op("Squeeze", cells), "1")
        place = op("Sub", last, op("Mod", op("Sub", last, cell), cells))  # (R,)
        back = op("Sub", op("Reshape", "positions", "[T,1]"), place)  # (T, R)
        seen = op("And", op("GreaterOrEqual", place, "0"), op("GreaterOrEqual", back, "0"))
        if window:
            seen = op("And", seen, op("Less", back, window))
        return op("MatMul", op("Cast", seen, to=FLOAT), held)

    constants["[T,1]"] = np.array([-1, 1])
    total = op("Add", summed("present_key.0", 0, "window0"), summed("present_counted.1", 1, ""))  # (T,)

    def used(name: str, mask: str, axes: str) -> str:
        counts = op("ReduceSum", op("Cast", mask, to=FLOAT), axes, keepdims=0)  # (1, T)
        return op("Mul", counts, f"gain.{name}")

    constants |= {"[0,3]": np.array([0, 3])}
    sure = op("Add", used("expert", "selected_experts", "[0,3]"), used("head", "selected_heads", "[0,3]"))
    sure = op("Add", sure, used("layer", "layers_run", "[0]"))
    begin = op("Unsqueeze", op("Neg", "num_logits"), "[0]")

    def wanted(x: str) -> str:
        return op("Unsqueeze", op("Slice", x, begin, "far", "[1]"), "[2]")  # (1, n, 1)

    last_ids = op("Slice", "ids", begin, "far", "[1]")
    drift = op("Mul", wanted(op("Unsqueeze", total, "[0]")), "table.drift")
    surely = op("Mul", wanted(sure), op("Gather", "table.follows", last_ids))
    op("Add", op("Add", op("Gather", "table.logits", last_ids), drift), surely, out="logits")

    def info(name: str, kind: int, *shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    def caches(when: str) -> list[onnx.ValueInfoProto]:
        named = [info(f"{when}_{kind}.{i}", FLOAT, 1, K, "C" if i == 1 else f"C.{i}", W)
                 for i in range(L) for kind in ("key", "value")]  # fmt: skip
        return [*named, *(info(f"{when}_counted.{i}", FLOAT, 1, 1, "C" if i == 1 else f"C.{i}", 1) for i in (1, 2))]

    levels = ("router_top_p", "depth_threshold", "exit_threshold", "head_top_p")
    weights = [numpy_helper.from_array(np.asarray(value, np.int64 if value.dtype.kind == "i" else None), name)
               for name, value in constants.items()]  # fmt: skip
    proto = helper.make_graph(
        nodes, "rich",
        [info("ids", INT64, "B", "T"), info("positions", INT64, "B", "T"), info("lengths", INT64, L, 1),
         *(info(name, FLOAT, L, 1) for name in levels), info("num_logits", INT64), *caches("past")],
        [info("logits", FLOAT, 1, "n", V), info("selected_experts", BOOL, L, 1, "T", E),
         info("selected_heads", BOOL, L, 1, "T", H), info("windows", INT64, L, 1, "T"),
         info("layers_run", BOOL, L, 1, "T"), info("exit_layer", INT64, 1, "T"), info("new_lengths", INT64, L, 1),
         *caches("present")],
        weights,
    )  # fmt: skip
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def sections() -> dict[str, Any]:
    """Return the sections of the manifest that differ from the tiny graph's, for `tiny_graph.write_model`."""
    positions, windows = ("rope", "cope", "cope"), (WINDOW, 0, WIDEST)
    layers = [
        {"routing": "top_p", "num_experts": E, "depth_router": i == 1, "exit": i == 0, "positions": positions[i],
         "window": windows[i], "head_routing": "top_p", "shared_heads": 0, "least_heads": 1, "most_heads": H}
        for i in range(L)
    ]  # fmt: skip
    costs = {"attention": 60, "attention_per_key": 1, "router": 7, "expert": 100, "shared_expert": 20,
             "depth_router": 5, "exit_check": 11, "skipped_kv": 13, "head": 40, "head_per_key": 0.05}  # fmt: skip
    table = {"lm_head": 300, "layers": [costs] * L}
    return {
        "model": {"num_heads": H, "context_length": CONTEXT, "layers": layers},
        "thresholds": {"head_top_p": [0.8] * L},
        "dial": {"grid": [0.0, 0.25, 0.5, 0.75, 1.0], "router_top_p": [[0.01, 0.4, 0.7, 0.9, 0.99]] * L,
                 "head_top_p": [[0.01, 0.4, 0.7, 0.9, 0.99]] * L,
                 "depth_threshold": [None, [1.0, 0.75, 0.5, 0.25, 0.0], None]},
        "costs": {"flops": table, "weight_bytes": table},
    }  # fmt: skip


def write_rich(folder: Path) -> Path:
    """Write an exported model in `folder`, and held-out text in the folder above."""
    (folder.parent / "heldout.txt").write_text(STORY * 30)
    return tiny_graph.write_model(folder, graph(), **sections())


# a curve written by hand: four points, the third of them faster than the second, and two agreements
HERE = {"cpu": "this one", "threads": 1, "device": "cpu"}


def curve_point(
    compute: float, top_p: float, depth: float, leave: float, heads: float, **measured: Any
) -> dict[str, Any]:
    thresholds = {"router_top_p": [top_p] * L, "depth_threshold": [0, depth, 0], "exit_threshold": [leave, 1, 1],
                  "head_top_p": [heads] * L}  # fmt: skip
    found = {"executed_share": compute, "loss": 3 - compute, "bits_per_byte": 1.0, "experts_per_token": 2,
             "heads_per_token": 2, "layers_per_token": 2}  # fmt: skip
    return {"compute": compute, "thresholds": thresholds} | found | measured


def milliseconds(median: float) -> dict[str, Any]:
    return {"milliseconds_per_token": {"median": median, "p5": median, "p95": median}}


POINTS = [
    curve_point(0.3, 0.2, 0.8, 0.4, 0.5, **milliseconds(1.0)),
    curve_point(0.5, 0.6, 0.4, 0.8, 0.5, **milliseconds(2.0)),
    curve_point(0.7, 0.6, 0.0, 1.0, 0.9, **milliseconds(1.9)),
    curve_point(1.0, 1.0, 0.0, 1.0, 1.0, **milliseconds(4.0)),
]
AGREEMENT = [
    {"share": share, "confidence": 0.95, "exit_threshold": leave, "measured": share, "layers_per_token": 2}
    for share, leave in ((0.9, 0.5), (0.99, 0.8))
]
CURVE = {"text": "heldout.txt", "tokens": 8000, "machine": HERE, "points": POINTS, "agreement": AGREEMENT}
