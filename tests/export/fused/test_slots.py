"""One pass over tokens of many sequences: each has the bits that it has alone, whatever stands beside it."""

import hashlib
from functools import cache

import numpy as np
import pytest
from support.cases import each, each_covered
from support.graphs.bare_graph import (
    COVER,
    DECISIONS,
    MODELS,
    Graph,
    GraphOutputs,
    Sequences,
    joined,
    model_of,
    shifted,
    weights_of,
)
from support.models import busy_thresholds, season, tiny_ids, variant
from support.operators.each_kernel import digests_of_each_kernel
from support.operators.our_library import needs_library
from support.slots import Part, Slots

from adaptive_lm.export.fused.transformer import build
from adaptive_lm.runtime.format.manifest import KV, Precision, Precisions
from adaptive_lm.train.model import ModelConfig, ThresholdTensors, Transformer

pytestmark = needs_library
T, LONGEST, SEQUENCES, NUM_SLOTS = 24, 7, 4, 6
FORMS: list[tuple[Precision, KV]] = [
    ("fp32", "fp32"), ("fp32", "fp16"), ("fp32", "int8"), ("bf16", "fp16"), ("int8", "fp32"), ("int8", "fp16"),
    ("int4", "fp32"), ("int4", "int8"),
]  # fmt: skip
MECHANISMS = ["top_p", "cope_window_project", "everything_none", "heads_top_p", "exits_none", "length_none"]


@cache
def graph_of(name: str, precision: Precision = "fp32", kv: KV = "fp32") -> Graph:
    proto = build(MODELS[name], weights_of(model_of(name)), Precisions.of(precision), kv)
    return Graph(proto, MODELS[name])


def limits_of(config: ModelConfig) -> list[ThresholdTensors]:
    """Return thresholds for each sequence, no two alike."""
    return [shifted(busy_thresholds(config), by) for by in (0.0, 0.03, -0.03, 0.06)]


def ids() -> np.ndarray:
    return tiny_ids(seed=2, batch=SEQUENCES, time=T).numpy()


@cache
def alone(graph: Graph) -> list[GraphOutputs]:
    """Compute each sequence alone, token by token."""
    limits = limits_of(graph.config)
    return [Sequences(graph).steps(ids()[b : b + 1], limits[b]) for b in range(SEQUENCES)]


def together(graph: Graph, seed: int) -> list[GraphOutputs]:
    """Compute all in passes of chunks and single tokens, mixed at random, in slots drawn at random."""
    random, limits = np.random.default_rng(seed), limits_of(graph.config)
    slots, home = Slots(graph, NUM_SLOTS, longest=LONGEST), random.permutation(NUM_SLOTS)[:SEQUENCES]
    unused = [slot for slot in range(NUM_SLOTS) if slot not in home]
    before = [slots.content(slot) for slot in unused]
    done, results = np.zeros(SEQUENCES, int), [[] for _ in range(SEQUENCES)]
    while (done < T).any():
        counts = random.integers(0, LONGEST + 1, SEQUENCES) if random.random() < 0.7 else np.ones(SEQUENCES, int)
        counts = np.minimum(counts, T - done)
        taken = random.permutation(np.flatnonzero(counts))
        if not len(taken):
            continue
        parts = [Part(int(home[b]), ids()[b, done[b] : done[b] + counts[b]], limits[b]) for b in taken]
        order = random.permutation(np.repeat(np.arange(len(taken)), counts[taken]))
        for b, one in zip(taken, slots.run(parts, order), strict=True):
            results[b].append(one)
        done += counts
    assert [slots.content(slot) for slot in unused] == before
    assert not slots.lengths[:, unused].any()
    return [joined(parts) for parts in results]


def same_bits(one: GraphOutputs, other: GraphOutputs) -> None:
    for name in ("logits", "new_lengths", *DECISIONS):
        if getattr(one, name) is not None:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@each_covered("name", MODELS, COVER)
def test_a_sequence_in_a_mixed_pass_has_the_bits_that_it_has_alone(name: str) -> None:
    for seed in (0, 1):
        for one, other in zip(together(graph_of(name), seed), alone(graph_of(name)), strict=True):
            same_bits(one, other)


@each(("precision", "kv"), FORMS)
@each("name", MECHANISMS)
def test_it_has_them_in_every_precision(name: str, precision: Precision, kv: KV) -> None:
    graph = graph_of(name, precision, kv)
    for one, other in zip(together(graph, 2), alone(graph), strict=True):
        same_bits(one, other)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_it_has_them_with_two_threads(precision: Precision) -> None:
    """The model is large enough that operators divide their work."""
    config = variant(
        dim=128, num_heads=8, num_kv_heads=4, head_dim=32, ffn={"expert_dim": 160, "num_experts": 4},
        depth={"layers_share": 0.5, "skipped_kv": "none"},
    )  # fmt: skip
    model = Transformer(config)
    season(model, seed=5)
    proto = build(config, weights_of(model.eval()), Precisions.of(precision))
    expected = alone(Graph(proto, config))
    for seed in (3, 4):
        for one, other in zip(together(Graph(proto, config, threads=2), seed), expected, strict=True):
            same_bits(one, other)


def digest() -> str:
    """Return a digest of what the chosen kernels compute for mixed passes."""
    result = hashlib.sha256()
    forms: list[tuple[Precision, KV]] = [("fp32", "fp16"), ("bf16", "fp32"), ("int8", "int8"), ("int4", "fp32")]
    pairs = [(name, forms[place % 4]) for place, name in enumerate(MECHANISMS)]
    for name, form in pairs + [(MECHANISMS[-1], form) for form in forms]:
        for one in together(graph_of(name, *form), 5):
            result.update(one.logits.tobytes())
    return result.hexdigest()


def test_every_instruction_set_gives_them() -> None:
    first, *others = digests_of_each_kernel("export/fused/test_slots.py").values()
    for other in others:
        assert other == first


def test_only_the_named_tokens_have_logits() -> None:
    config, graph = MODELS["top_p"], graph_of("top_p")
    limits = busy_thresholds(config)
    every = Slots(graph, 1).run([Part(0, ids()[0], limits)])[0].logits[0]  # (T, V)
    for rows in ([], [T - 1], [0, 3, 11]):
        some = Slots(graph, 1).bare_run(inputs(config, ids()[0], np.zeros(T, int), rows))
        np.testing.assert_array_equal(some["logits"], every[rows])


def inputs(config: ModelConfig, tokens: np.ndarray, slots: np.ndarray, rows: list[int]) -> dict[str, np.ndarray]:
    """Return the inputs of a pass at the thresholds of `busy_thresholds`, from position 0 on."""
    limits = busy_thresholds(config)
    levels = {
        name: np.repeat(getattr(limits, name).numpy()[:, None], len(tokens), 1).astype(np.float32)
        for name in ("router_top_p", "depth_threshold", "exit_threshold")
    }
    return levels | {
        "ids": tokens[:, None],
        "positions": np.arange(len(tokens))[:, None],
        "slots": slots,
        "logit_rows": np.array(rows, np.int64),
    }


@pytest.mark.parametrize(
    ("slot", "rows", "message"),
    [
        (2, [0], "input slots is 2 for row 3, expected 0 to 1"),
        (-1, [0], "input slots is -1 for row 3, expected 0 to 1"),
        (1, [5], "input logit_rows holds 5, expected 0 to 4"),
        (1, [0, -1], "input logit_rows holds -1, expected 0 to 4"),
    ],
)
def test_a_slot_or_token_that_is_not_there_is_refused(slot: int, rows: list[int], message: str) -> None:
    slots = Slots(graph_of("top_p"), 2)
    with pytest.raises(RuntimeError, match=message):
        slots.bare_run(inputs(MODELS["top_p"], ids()[0, :5], np.array([0, 0, 1, slot, 0]), rows))


def test_a_slot_without_room_is_refused_and_a_full_one_without_tokens_is_not() -> None:
    graph = graph_of("top_p")
    limits, slots = busy_thresholds(graph.config), Slots(graph, 3, capacity=16)
    slots.run([Part(1, ids()[1, :16], limits)])
    before, lengths = [slots.content(slot) for slot in range(3)], slots.lengths
    crowd = [Part(0, ids()[0, :4], limits), Part(1, ids()[1, 16:17], limits)]
    with pytest.raises(RuntimeError, match=r"past_key has 16 cells, expected at least 17 .* in slot 1"):
        slots.run(crowd)
    assert [slots.content(slot) for slot in range(3)] == before
    (one,) = slots.run(crowd[:1])
    same_bits(one, Sequences(graph).run(ids()[:1, :4], limits))
    np.testing.assert_array_equal(slots.lengths[:, 1], lengths[:, 1])
    assert slots.content(1) == before[1]
