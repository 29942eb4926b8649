"""A model whose tokens choose among few candidates, exported with the whole check, and its dial in the runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from support.graphs.bare_graph import MODELS, Graph, Sequences, everything_on, model_of, nodes, proto_of, weights_of
from support.models import tiny_ids, variant
from support.operators.our_library import needs_library
from support.runs import write_run

from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.model.transformer import build
from adaptive_lm.runtime.dial import Dial, resolve
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.manifest import Manifest, Precisions
from adaptive_lm.train.model import Transformer

CAPPED = {
    "num_experts": 6, "expert_dim": 16, "most_experts": 3, "experts_per_token": 2, "controller": "fixed",
    "router_top_p": 1.0, "dense_layers": [0], "dim": 24, "shared_expert_dim": 8, "shared_gate": True, "bias": True,
}  # fmt: skip


@needs_library
@pytest.mark.usefixtures("quick")
def test_an_export_passes_its_check_and_the_runtime_turns_the_dial_inside_k(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "tiny", ffn=CAPPED, depth={})
    exported = run_export(str(run), tmp_path / "model", Precisions.of("int8"), threads=1)
    assert exported.report["passed"] is True
    manifest = Manifest.read(exported.folder)
    assert [layer.candidates for layer in manifest.model.layers] == [1, 3, 3]
    assert manifest.model.layers[0].routing == "dense"
    assert manifest.inputs["router_ratio"].shape == [3, "B"]
    assert manifest.thresholds.router_ratio == [0, 0, 0]
    used = {}
    for target in ("portable", "cpu"):
        session = Session(exported.folder, device="cpu", target=target, threads=1)
        for name, dial in {
            "trained": Dial(), "mass": Dial(router_top_p=0.4), "ratio": Dial(router_ratio=0.9),
            "first": Dial(router_ratio=1), "experts": Dial(experts=3),
        }.items():  # fmt: skip
            sequence = session.sequence(resolve(manifest, dial))
            steps = [sequence.prefill([1, 2, 3]), *(sequence.step(token) for token in (4, 5, 6, 7))]
            used[target, name] = np.concatenate([step.routes.selected_experts for step in steps], 1).sum(-1)  # (L, T)
            if name == "trained":
                assert all(step.usage.flops_share == pytest.approx(1) for step in steps)
        sequence = session.sequence(resolve(manifest, Dial(router_ratio=1)))
        assert sequence.prefill([1, 2, 3]).usage.flops_share < 1
    for name in ("trained", "mass", "ratio", "first", "experts"):
        np.testing.assert_array_equal(used["portable", name], used["cpu", name])
        assert (used["cpu", name][0] == 1).all(), "a dense layer is its first expert"
    assert (used["cpu", "trained"][1:] == 3).all()
    assert (used["cpu", "experts"][1:] == 3).all()
    assert (used["cpu", "first"][1:] == 1).all()
    for name in ("mass", "ratio"):
        assert used["cpu", name][1:].mean() < 3


def largest_value(name: str, tokens: int) -> int:
    """Return the most numbers of a value in the feed-forward part of the graph, for a prompt."""
    proto = proto_of(name)
    config = MODELS[name]
    inner = [output for node in nodes(proto) for output in node.output if "/moe/" in output]
    known = {value.name for value in proto.graph.output}
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    names = [output for node in proto.graph.node for output in node.output if output in inner and output not in known]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    graph = Graph(proto, config)
    assert isinstance(graph.session, onnxruntime.InferenceSession)
    sequences = Sequences(graph, capacity=tokens)
    feeds = {
        "ids": tiny_ids(time=tokens, batch=1).numpy(),
        "positions": np.arange(tokens)[None],
        "lengths": sequences.lengths,
        "num_logits": np.asarray(1, np.int64),
        **{
            key: value.numpy()[:, None].astype(np.float32)
            for key, value in everything_on(config).given().items()
            if key in {entry.name for entry in graph.session.get_inputs()}
        },
        **{f"past_{key}": value.numpy() for key, value in sequences.caches.items()},
    }
    found = graph.session.run(names, feeds)
    return max(value.size for value in found if isinstance(value, np.ndarray))


def test_nothing_in_a_prompt_has_a_row_for_every_token_and_expert() -> None:
    """300 experts, 7 candidates: gate and up of the chosen pairs are the largest, not (tokens, experts, width)."""
    config, tokens = MODELS["many_experts"], 24
    largest = largest_value("many_experts", tokens)
    pairs = tokens * config.ffn.candidates
    assert largest <= max(pairs * config.dim, config.num_experts * config.dim, tokens * config.num_experts)
    assert largest < tokens * config.num_experts * config.dim / 4


def test_a_ratio_stands_where_the_score_is_equal() -> None:
    """A router of zeros gives each the same score: a ratio of 1 keeps all candidates, and ties go to lower numbers."""
    config = MODELS["capped"]
    state = weights_of(model_of("capped"))
    state |= {name: 0 * value for name, value in state.items() if "router" in name}
    graph = Graph(build(config, state), config)
    for top_p, ratio, used in ((1.0, 1.0, 3), (0.34, 0.0, 2), (0.3333, 1.0, 1), (0.67, 0.0, 3)):
        limits = everything_on(config)
        limits = limits._replace(router_top_p=top_p * limits.router_top_p, router_ratio=ratio + 0 * limits.router_top_p)
        graph_out = Sequences(graph).run(tiny_ids(2, batch=1).numpy(), limits)
        expected = np.broadcast_to(np.arange(8) < used, graph_out.selected_experts.shape)
        np.testing.assert_array_equal(graph_out.selected_experts, expected)


def test_the_top_of_the_dial_is_top_k() -> None:
    """The same weights under `routing: top_k` give the same experts and logits."""
    capped = MODELS["capped"]
    fixed = variant(ffn={"num_experts": 8, "routing": "top_k", "experts_per_token": 3})
    assert set(Transformer(fixed).state_dict()) == set(Transformer(capped).state_dict())
    ids = tiny_ids(2, batch=1).numpy()
    one = Sequences(Graph(build(capped, weights_of(model_of("capped"))), capped)).run(ids, everything_on(capped))
    other = Sequences(Graph(build(fixed, weights_of(model_of("capped"))), fixed)).run(ids, everything_on(fixed))
    np.testing.assert_array_equal(one.selected_experts, other.selected_experts)
    np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=1e-5)
