"""Each mechanism broken once in the graph: the comparison with torch finds every fault.

Every other test here says that graph and torch agree; these say that they would not agree by chance.
"""

import re
from collections.abc import Callable

import numpy as np
import onnx
import torch
from onnx import helper
from support.cases import each
from support.graphs.bare_graph import MODELS, Graph, Sequences, model_of, nodes, weights_of
from support.models import busy_thresholds, decisions, tiny_ids

from adaptive_lm.export.model.transformer import build
from adaptive_lm.export.proof.parity import TOLERANCE

T = 26
Change = Callable[[onnx.NodeProto], None]


def becomes(op_type: str) -> Change:
    """Use another operator on the same inputs."""

    def change(node: onnx.NodeProto) -> None:
        node.op_type = op_type

    return change


def attribute(name: str, value: int) -> Change:
    def change(node: onnx.NodeProto) -> None:
        kept = [one for one in node.attribute if one.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def swapped(node: onnx.NodeProto) -> None:
    """Swap its two inputs, or its two outputs where it splits."""
    ends = node.output if node.op_type == "Split" else node.input
    first, second = ends[0], ends[1]
    ends[0], ends[1] = second, first


def only_first(node: onnx.NodeProto) -> None:
    """Pass its first input through."""
    node.op_type = "Identity"
    del node.input[1:]


def without_shift(node: onnx.NodeProto) -> None:
    """Where(everything, level, moved) -> level."""
    node.op_type = "Identity"
    level = node.input[1]
    del node.input[1:]
    node.input[0] = level


BROKEN: dict[str, tuple[str, str, Change]] = {
    "heads: the mass includes the head itself": ("heads_top_p", "head_router/mass_before", attribute("exclusive", 0)),
    "heads: no shift for the token": ("heads_top_p", "head_router/limit", without_shift),
    "heads: one more of the best": ("heads_top_k", r"head_router/Less", becomes("LessOrEqual")),
    "heads: shared and routed change their weights": ("heads_shared", r"head_router/Split\.1", swapped),
    "heads: complexity moves ranks the other way": ("heads_adaptive", "head_router/Sub", becomes("Add")),
    "heads: outputs are not weighted": ("heads_top_k", "attention/weigh_heads", only_first),
    "heads: weights do not add up to their number": ("heads_top_p", "head_router/head_weights", only_first),
    "cope: gates are summed from the left": ("cope", "cope/CumSum", attribute("reverse", 0)),
    "cope: positions are not interpolated": ("cope", "cope/Add", only_first),
    "cope: skipped tokens are counted": ("cope_project", "attention/counts", only_first),
    "cope: a ring is summed in order of its cells": ("cope_window_project", "cope/And", becomes("Xor")),
    "window: one token more": ("window_fixed", "attention/seen", becomes("LessOrEqual")),
    "window: the ring does not turn": ("window_fixed", "attention/Mod", only_first),
    "window: learned levels are rounded up": ("window_learned", "window_router/Floor", becomes("Ceil")),
    "window: learned windows reach before the first token": ("window_learned", "attention/Min", only_first),
    "experts: no shift for the token": ("experts_per_token", "router/limit", without_shift),
    "depth: the shift is unbounded": ("depth_per_token", "depth_router/Tanh", becomes("Identity")),
    "exits: the best alone in place of its lead": ("exit_margin", r"exit\.\d/Sub", only_first),
    "exits: entropy without its sign": ("exit_entropy", r"exit\.\d/Add", becomes("Sub")),
    "exits: the router's score is no sigmoid": ("exit_router", r"exit\.\d/exit_scores", becomes("Tanh")),
}


def differs(name: str, proto: onnx.ModelProto) -> bool:
    """Return whether the graph differs from torch in passes of one token, whose caches are rings."""
    ids, limits = tiny_ids(2, batch=1, time=T), busy_thresholds(MODELS[name])
    with torch.no_grad():
        out = model_of(name)(ids, limits)
    graph_out = Sequences(Graph(proto, MODELS[name]), longest=1).steps(ids.numpy(), limits)
    chosen = any(not np.array_equal(getattr(graph_out, key), value.numpy()) for key, value in decisions(out).items())
    return chosen or float(np.abs(graph_out.logits - out.logits.numpy()).max()) > TOLERANCE["fp32"]


@each(("name", "where", "change"), BROKEN.values())
def test_a_slip_is_noticed(name: str, where: str, change: Change) -> None:
    proto = build(MODELS[name], weights_of(model_of(name)))
    assert not differs(name, proto)
    hit = [node for node in nodes(proto) if re.search(rf"/?(?:{where})$", node.name)]
    assert hit, [node.name for node in nodes(proto)]
    for node in hit:
        change(node)
    assert differs(name, proto)
