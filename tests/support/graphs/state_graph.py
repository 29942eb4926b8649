"""A graph with the interface of an exported hybrid: a recurrent layer and, if wanted, one with attention behind it.

Tables in place of a network, as in `tiny_graph`. Layer 0 has a depth router, a state and the input of a convolution;
layer 1 adds up the ids in its KV cache. The rows of a pass are computed one after another, so a token has the same bits
alone and in a prompt. `expected` computes the same in plain numpy.

S slots, N rows of a pass, C capacity, V vocabulary, E experts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from support.graphs.tiny_graph import CONTEXT, E, H, K, V, manifest_content, write_model

DECAY = np.float32(0.75)
STATES = {"state": [1, 2, 2], "conv": [2, 1]}
_random = np.random.default_rng(11)


def _normal(*shape: int) -> NDArray[np.float32]:
    return _random.normal(size=shape).astype(np.float32)


TABLES: dict[str, NDArray[Any]] = {
    "values_of": _normal(V, 1, 2, 1),
    "keys_of": _normal(V, 1, 1, 2),
    "receptance_of": _normal(V, 1, 1, 2),
    "inputs_of": _normal(V, 2, 1),
    "score_of": _random.random(V).astype(np.float32),
    "mass_before": np.sort(_random.random((V, E)).astype(np.float32), axis=1),
    "logits_of": _normal(V, V),
    "drift": _normal(V),
}
CONSTANTS: dict[str, Any] = {
    "decay": DECAY, "quarter": np.float32(0.25), "small": np.float32(1e-4), "zero": np.float32(0),
    "one_row": np.array([1]), "column": np.array([-1, 1]), "flat": np.array([-1]), "axis_0": np.array([0]),
    "axis_1": np.array([1]), "axis_2": np.array([2]), "first": np.array(0), "step": np.array(1),
    "layer_0": np.array(0), "layer_1": np.array(1), "far": np.array([2**40]), "no_layer": np.array(-1),
    "cells": np.array([1, K, -1, 1]), "pair": np.array([1, K, 1, H]), "one": np.array(1), "yes": np.array([True]),
}  # fmt: skip


def expected(
    ids: list[int], depth: float, *, attention: bool = True
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return logits (T, V), which tokens ran layer 0 (T,), and its state at the end (1, 2, 2)."""
    state, last, held = np.zeros((1, 2, 2), np.float32), np.zeros((2, 1), np.float32), np.float32(0)
    logits, runs = [], []
    for token in ids:
        run = TABLES["score_of"][token] >= np.float32(depth)
        feature = np.float32(0)
        if run:
            state = state * DECAY + TABLES["values_of"][token] * TABLES["keys_of"][token]
            feature = (state * TABLES["receptance_of"][token]).sum() + np.float32(0.25) * last.sum()
            last = TABLES["inputs_of"][token]
        held = held + np.float32(token)
        feature = feature + np.float32(1e-4) * held * attention
        logits.append(TABLES["logits_of"][token] + feature * TABLES["drift"])
        runs.append(run)
    return np.stack(logits), np.array(runs), state


def graph(*, mixes: bool, attention: bool = True, skipped: str = "none") -> onnx.ModelProto:
    """Build the graph.

    Args:
        mixes: Whether it takes rows of several slots, as that of our operators does.
        attention: Whether layer 1 is there.
        skipped: The policy for skipped tokens: under `project`, layer 0 counts them.
    """
    L = 1 + attention
    grid, S = ("N,1", "S") if mixes else ("1,N", "1")
    kv = f", float[{S},{K},C,{H}] past_key__1, float[{S},{K},C,{H}] past_value__1" if attention else ""
    held = f"float[{S},{K},C,{H}] key_after, float[{S},{K},C,{H}] value_after, " if attention else ""
    levels = ", ".join(
        f"float[{L},{'N' if mixes else '1'}] {name}" for name in ("router_top_p", "depth_threshold", "exit_threshold")
    )
    counted = "run_number" if skipped == "none" else "one"
    attend = """
            cache = Gather (key_before, slot)
            cells_0 = Slice (cache, axis_0, one_row, axis_2)
            content = Reshape (cells_0, flat)
            capacity = Shape (content)
            capacity_ = Squeeze (capacity)
            place = Range (first, capacity_, step)
            own_lengths = Gather (length_before, layer_1)
            length = Gather (own_lengths, slot)
            seen = Less (place, length)
            past = Where (seen, content, zero)
            held_before = ReduceSum <keepdims = 0> (past)
            number = Cast <to = 1> (id)
            held = Add (held_before, number)
            here = Equal (place, length)
            written = Where (here, number, content)
            written_ = Reshape (written, cells)
            cells_ = Expand (written_, pair)
            key_after = ScatterND (key_before, place_of_slot, cells_)
            value_after = ScatterND (value_before, place_of_slot, cells_)
            scaled = Mul (held, small)
            feature = Add (mixed, scaled)
            counts = Concat <axis = 0> (count_0, one_row)
    """ if attention else """
            feature = Identity (mixed)
            counts = Identity (count_0)
    """  # fmt: skip
    outer_kv = ", past_key__1, past_value__1" if attention else ""
    inner_kv = f", float[{S},{K},C,{H}] key_before, float[{S},{K},C,{H}] value_before" if attention else ""
    ends = ", key_end, value_end" if attention else ""
    present = f", float[{S},{K},C,{H}] present_key__1, float[{S},{K},C,{H}] present_value__1" if attention else ""
    model = parser.parse_model(f"""
    <ir_version: 11, opset_import: ["": 24]>
    hybrid (
        int64[{grid}] ids, int64[{grid}] positions, int64[{L},{S}] lengths, {levels},
        {"int64[N] slots, int64[R] logit_rows" if mixes else "int64 num_logits"},
        float[{S},1,2,2] past_state__0, float[{S},2,1] past_conv__0{kv}
    ) => (
        float[{f"R,{V}" if mixes else f"1,R,{V}"}] logits, bool[{L},{grid},{E}] selected_experts,
        bool[{L},{grid}] layers_run, int64[{grid}] exit_layer, int64[{L},{S}] new_lengths,
        float[{S},1,2,2] present_state__0, float[{S},2,1] present_conv__0{present}
    ) {{
        rows = Reshape (ids, flat)
        {"slots_ = Identity (slots)" if mixes else "slots_ = Sub (rows, rows)"}
        depths = Gather (depth_threshold, layer_0)
        depth_rows = Expand (depths, rows_shape)
        rows_shape = Shape (rows)
        state_end, conv_end, length_end{ends}, features, runs = Scan <num_scan_inputs = 3, body = row (
            float[{S},1,2,2] state_before, float[{S},2,1] conv_before, int64[{L},{S}] length_before{inner_kv},
            int64 id, int64 slot, float depth
        ) => (
            float[{S},1,2,2] state_after, float[{S},2,1] conv_after, int64[{L},{S}] length_after,
            {held}float feature, bool run
        ) {{
            score = Gather (score_of, id)
            run = GreaterOrEqual (score, depth)
            run_number = Cast <to = 7> (run)
            run_float = Cast <to = 1> (run)
            place_of_slot = Reshape (slot, column)
            old = Gather (state_before, slot)
            faded = Mul (old, decay)
            v = Gather (values_of, id)
            k = Gather (keys_of, id)
            vk = Mul (v, k)
            updated = Add (faded, vk)
            new = Where (run, updated, old)
            new_ = Unsqueeze (new, axis_0)
            state_after = ScatterND (state_before, place_of_slot, new_)
            last = Gather (conv_before, slot)
            input = Gather (inputs_of, id)
            next = Where (run, input, last)
            next_ = Unsqueeze (next, axis_0)
            conv_after = ScatterND (conv_before, place_of_slot, next_)
            r = Gather (receptance_of, id)
            product = Mul (new, r)
            read = ReduceSum <keepdims = 0> (product)
            last_sum = ReduceSum <keepdims = 0> (last)
            last_part = Mul (last_sum, quarter)
            both = Add (read, last_part)
            mixed = Mul (both, run_float)
            count_0 = Reshape ({counted}, flat)
            {attend}
            slots_shape = Shape <start = 1> (length_before)
            slots_number = Squeeze (slots_shape)
            every_slot = Range (first, slots_number, step)
            own = Equal (every_slot, slot)
            own_number = Cast <to = 7> (own)
            counts_ = Unsqueeze (counts, axis_1)
            more = Mul (counts_, own_number)
            length_after = Add (length_before, more)
        }}> (past_state__0, past_conv__0, lengths{outer_kv}, rows, slots_, depth_rows)
        first_id = Gather (rows, first)
        first_number = Cast <to = 1> (first_id)
        nothing = Mul (first_number, zero)
        present_state__0 = Add (state_end, nothing)
        present_conv__0 = Add (conv_end, nothing)
        {"present_key__1 = Add (key_end, nothing) present_value__1 = Add (value_end, nothing)" if attention else ""}
        new_lengths = Identity (length_end)
        {
        "picked = Identity (logit_rows)"
        if mixes
        else '''
        total = Squeeze (rows_shape)
        begin = Sub (total, num_logits)
        picked = Range (begin, total, step)'''
    }
        picked_ids = Gather (rows, picked)
        picked_features = Gather (features, picked)
        features_ = Unsqueeze (picked_features, axis_1)
        drifted = Mul (features_, drift)
        tables = Gather (logits_of, picked_ids)
        flat_logits = Add (tables, drifted)
        {"logits = Identity (flat_logits)" if mixes else "logits = Unsqueeze (flat_logits, axis_0)"}
        mass = Gather (mass_before, ids)
        runs_grid = Reshape (runs, ids_shape)
        ids_shape = Shape (ids)
        runs_0 = Unsqueeze (runs_grid, axis_0)
        always = Expand (yes, shape_0)
        shape_0 = Shape (runs_0)
        layers_run = {"Concat <axis = 0> (runs_0, always)" if attention else "Identity (runs_0)"}
        top_p_rows = Unsqueeze (router_top_p, {"axis_2" if mixes else "axis_1"})
        top_p = Unsqueeze (top_p_rows, last_axis)
        wanted = Less (mass, top_p)
        runs_all = Unsqueeze (layers_run, last_axis)
        selected_experts = And (wanted, runs_all)
        exit_layer = Expand (no_layer, ids_shape)
    }}
    """)
    constants = CONSTANTS | TABLES | {"last_axis": np.array([-1])}
    for name, value in constants.items():
        array = np.asarray(value)
        array = array.astype(np.int64) if array.dtype.kind == "i" else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    _sort(model.graph)
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
        node.output[:] = [name.replace("__", ".") for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__", ".")
    return model


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes after those that they read: the text above is in the order in which it is best read."""
    ready = {one.name for one in (*graph.input, *graph.initializer)}
    nodes, waiting = [], list(graph.node)
    while waiting:
        node = next(one for one in waiting if set(one.input) <= ready)
        waiting.remove(node)
        nodes.append(node)
        ready |= set(node.output)
    del graph.node[:]
    graph.node.extend(nodes)


def write_hybrid(folder: Path, *, mixes: bool, attention: bool = True, skipped: str = "none") -> Path:
    """Write the model as an exported one."""
    costs = manifest_content()["costs"]["flops"]["layers"][0]
    recurrent = {"routing": "top_p", "num_experts": E, "depth_router": True, "exit": False, "mixer": "retnet",
                 "positions": "none", "states": STATES}  # fmt: skip
    layers = [recurrent, {"routing": "top_p", "num_experts": E, "depth_router": False, "exit": False}][: 1 + attention]
    L = len(layers)
    table = {"lm_head": 1000, "layers": [costs | {"attention_per_key": 0, "state": 17}, costs][:L]}
    return write_model(
        folder,
        graph(mixes=mixes, attention=attention, skipped=skipped),
        format_version=3,
        model={"num_layers": L, "layers": layers, "skipped_kv": skipped, "context_length": 32 * CONTEXT},
        thresholds={"router_top_p": [0.5] * L, "depth_threshold": [0.3] + [0.0] * (L - 1), "exit_threshold": [1.0] * L},
        dial={"router_top_p": [[0.1, 0.6, 0.99]] * L, "depth_threshold": [[0.9, 0.4, 0.1], None][:L]},
        costs={"flops": table, "weight_bytes": table},
    )
