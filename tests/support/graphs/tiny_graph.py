"""A minimal graph with the interface of an exported model: tables instead of a network, and a real cache.

Three layers, four experts, a depth router in layer 1, an exit after layer 0, policy `project`, 257 byte tokens padded
to 260. `expected` computes its outputs in plain numpy; the tests compare the runtime with it, without torch.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from adaptive_lm.contract.byte_table import byte_characters
from adaptive_lm.runtime.format.files import digest
from adaptive_lm.runtime.format.manifest import Manifest

L, E, K, H, V, D, TOKENS, CONTEXT, EOS = 3, 4, 1, 2, 260, 8, 257, 96, 256
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

_random = np.random.default_rng(7)
_probs = np.sort(_random.dirichlet(np.full(E, 0.5), size=V), axis=1)[:, ::-1]
TABLES: dict[str, NDArray[Any]] = {
    "mass_before": (np.cumsum(_probs, axis=1) - _probs).astype(
        np.float32
    ),  # (V, E), of experts 0 to 3 in order of rank
    "depth_score": _random.random(V).astype(np.float32),  # (V,)
    "confidence": _random.random(V).astype(np.float32),  # (V,)
    "logits": _random.normal(size=(V, V)).astype(np.float32),  # (V, V)
    "drift": (_random.normal(size=V) / 1000).astype(np.float32),  # (V,), times the sum of all ids so far
}
STATES = _random.normal(size=(V, D)).astype(np.float32)
"""(V, D): the hidden state of each id, to which the sum of all ids so far is added."""


def expected(
    ids: list[int], top_p: float, depth: float, leave: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return logits (T, V), selected_experts (L, T, E), layers_run (L, T), exit_layer (T,) of a whole sequence."""
    t = np.array(ids)
    left = TABLES["confidence"][t] > leave
    run = np.stack([np.ones_like(left), ~left & (TABLES["depth_score"][t] >= depth), ~left])
    selected = (TABLES["mass_before"][t] < np.float32(top_p))[None] & run[:, :, None]
    logits = TABLES["logits"][t] + np.cumsum(t)[:, None].astype(np.float32) * TABLES["drift"]
    return logits, selected, run, np.where(left, 0, -1)


def expected_embedding(ids: list[int]) -> NDArray[Any]:
    """Return the mean of the hidden states of a whole sequence, (D,)."""
    states = STATES[ids] + np.cumsum(ids)[:, None].astype(np.float32)
    mean: NDArray[Any] = states.astype(np.float64).mean(0).astype(np.float32)
    return mean


def write_embedder(folder: Path, **changes: Any) -> Path:
    """Write the model with hidden states among its outputs."""
    return write_model(folder, graph(hidden=True), **changes | {"model": {"hidden_states": True}})


def graph(vocab: int = V, *, hidden: bool = False) -> onnx.ModelProto:
    """Build the graph; with a `vocab` other than V it does not fit its manifest."""
    nodes: list[onnx.NodeProto] = []
    constants = {name: value[..., :vocab] if name in ("logits", "drift") else value for name, value in TABLES.items()}
    constants |= {"one": np.array([1]), "zero": np.array([0]), "far": np.array([2**40]), "yes": np.array(True)}
    constants |= {f"layer{i}": np.array(i) for i in range(L)} | {
        "kv": np.array([1, K, -1, H]),
        "scalar": np.array([], np.int64),
    }
    constants |= {"none": np.array(-1), "first": np.array(0), "axis": np.array(1)}

    def op(kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        output = out or f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    left = op("Greater", op("Gather", "confidence", "ids"), op("Gather", "exit_threshold", "zero"))  # (1, T)
    stays = op("Not", left)
    scored = op("GreaterOrEqual", op("Gather", "depth_score", "ids"), op("Gather", "depth_threshold", "one"))
    runs = [op("Or", stays, left), op("And", stays, scored), stays]
    rows = [op("Unsqueeze", run, "zero") for run in runs]  # (1, 1, T)
    op("Concat", *rows, out="layers_run", axis=0)
    mass = op("Gather", "mass_before", "ids")  # (1, T, E)
    chosen = []
    for i, run in enumerate(runs):
        kept = op("Less", mass, op("Gather", "router_top_p", f"layer{i}"))
        chosen.append(op("Unsqueeze", op("And", kept, op("Unsqueeze", run, "far_end")), "zero"))
    constants["far_end"] = np.array([2])
    op("Concat", *chosen, out="selected_experts", axis=0)
    op("Where", left, "first", "none", out="exit_layer")

    as_float = op("Cast", "ids", to=FLOAT)  # (1, T)
    held = op("Reshape", op("Slice", "past_key.0", "zero", "one", "last"), "flat")  # (C,): the ids so far
    constants |= {"last": np.array([3]), "flat": np.array([-1])}
    place = op("Range", "first", op("Squeeze", op("Shape", held)), "step")
    constants["step"] = np.array(1)
    seen = op("Less", place, op("Squeeze", op("Gather", "lengths", "layer0")))
    past = op("ReduceSum", op("Where", seen, held, "nothing"), keepdims=0)
    constants["nothing"] = np.array(0, np.float32)
    so_far = op("Add", op("CumSum", as_float, "axis"), past)  # (1, T)
    if hidden:
        constants["states"] = STATES
        op("Add", op("Gather", "states", "ids"), op("Unsqueeze", so_far, "far_end"), out="hidden")
    begin = op("Unsqueeze", op("Neg", "num_logits"), "zero")
    last_ids = op("Slice", "ids", begin, "far", "one")
    sums = op("Unsqueeze", op("Slice", so_far, begin, "far", "one"), "far_end")
    op("Add", op("Gather", "logits", last_ids), op("Mul", sums, "drift"), out="logits.out")

    written = op("Expand", op("Reshape", as_float, "column"), "pair")
    constants |= {"column": np.array([1, K, -1, 1]), "pair": np.array([1, K, 1, H])}
    for i in range(L):
        length = op("Gather", "lengths", f"layer{i}")  # (1,)
        for kind in ("key", "value"):
            op("TensorScatter", f"past_{kind}.{i}", written, length, out=f"present_{kind}.{i}", axis=2)
    op("Add", "lengths", op("Shape", "ids", start=1, end=2), out="new_lengths")
    nodes.append(helper.make_node("Identity", ["logits.out"], ["logits_"]))

    def info(name: str, kind: int, *shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    thresholds = [info(name, FLOAT, L, 1) for name in ("router_top_p", "depth_threshold", "exit_threshold")]
    past_info = [info(f"past_{kind}.{i}", FLOAT, 1, K, "C", H) for i in range(L) for kind in ("key", "value")]
    present = [info(f"present_{kind}.{i}", FLOAT, 1, K, "C", H) for i in range(L) for kind in ("key", "value")]
    names = {"logits": "table.logits", "logits_": "logits", "logits.out": "logits.out"}
    for node in nodes:  # the output takes the name that the table had
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    weights = []
    for name, value in constants.items():
        value = value.astype(np.int64) if value.dtype.kind == "i" else value
        weights.append(numpy_helper.from_array(value, names.get(name, name)))
    proto = helper.make_graph(
        nodes, "tiny",
        [info("ids", INT64, "B", "T"), info("positions", INT64, "B", "T"), info("lengths", INT64, L, 1), *thresholds,
         info("num_logits", INT64), *past_info],
        [info("logits", FLOAT, 1, "n", vocab), info("selected_experts", BOOL, L, 1, "T", E),
         info("layers_run", BOOL, L, 1, "T"),
         info("exit_layer", INT64, 1, "T"), info("new_lengths", INT64, L, 1),
         *([info("hidden", FLOAT, 1, "T", D)] if hidden else []), *present],
        weights,
    )  # fmt: skip
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def byte_tokenizer() -> Tokenizer:
    """One token per byte; end-of-text is 256."""
    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(byte_characters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def manifest_content() -> dict[str, Any]:
    """Return the manifest of the graph, without its files."""
    layers = [{"routing": "top_p", "num_experts": E, "depth_router": i == 1, "exit": i == 0} for i in range(L)]
    costs = {"attention": 100, "attention_per_key": 3, "router": 7, "expert": 50, "shared_expert": 20,
             "depth_router": 5, "exit_check": 11, "skipped_kv": 13}  # fmt: skip
    table = {"lm_head": 1000, "layers": [costs] * L}
    grid = [0.0, 0.5, 1.0]
    return {
        "format": "adaptive-lm", "format_version": 2, "created_by": {"adaptive_lm": "0.1.0"},
        "model": {"vocab_size": V, "tokenizer_size": TOKENS, "context_length": CONTEXT, "dim": D, "num_layers": L,
                  "num_heads": 2, "num_kv_heads": K, "head_dim": H, "precision": "fp32", "skipped_kv": "project",
                  "eos_id": EOS, "num_experts": E, "layers": layers},
        "chat_template": None, "inputs": {}, "outputs": {},
        "thresholds": {"router_top_p": [0.5] * L, "depth_threshold": [0.0, 0.4, 0.0], "exit_threshold": [1.0] * L},
        "dial": {"grid": grid, "router_top_p": [[0.1, 0.6, 0.99]] * L, "depth_threshold": [None, [0.9, 0.4, 0.1], None],
                 "target": {"experts_per_token": 1.6, "layers_share": 0.5}},
        "costs": {"flops": table, "weight_bytes": table}, "parity": {}, "files": {},
    }  # fmt: skip


def write_model(folder: Path, proto: onnx.ModelProto | None = None, **changes: Any) -> Path:
    """Write an exported model: weights of 1 KiB or more outside the graph; `changes` to the manifest's sections."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(
        proto or graph(),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=1024,
    )
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return write_manifest(folder, **changes)


def write_manifest(folder: Path, **changes: Any) -> Path:
    """Write the manifest of the files in `folder`; unchecked, where a change breaks a rule of manifests."""
    content = manifest_content()
    names = ("model.onnx", "model.onnx.data", "tokenizer.json")
    content["files"] = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
        for name in names
        if (folder / name).exists()
    }
    for section, value in changes.items():
        content[section] = content[section] | value if isinstance(content.get(section), dict) else value
    try:
        Manifest.model_validate(content).write(folder)
    except ValueError:
        (folder / "manifest.json").write_text(json.dumps(content))
    return folder
