"""T39. Compiled blocks: one graph each, equal results, and no new graph for other routes."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.counting import Counted
from support.models import V, decisions, even_thresholds, season, tiny_ids, tiny_model, variant
from support.operators.compiler import needs_compiler

from adaptive_lm.train.model import LossConfig, ModelConfig, ModelOutput, Transformer, training_loss
from adaptive_lm.train.model.attention import attention
from adaptive_lm.train.model.block import Block
from adaptive_lm.train.model.linear import Linear, has_onednn

pytestmark = [
    # dynamo asks every tensor for its .grad, also those that have none
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"),
    # inductor imports a module of torch that still is TorchScript
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    # dynamo makes an instance of torch.autograd.Function where it meets one of ours, which torch itself calls old
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
INDUCTOR_TOLERANCE = 2e-5  # absolute; inductor fuses and so rounds differently, on logits of size 10
KINDS = {"exits_none": 1, "both_none": 2}
"""Kinds of blocks in a model; with depth routers there are two, because the first and the last layer have none."""


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    """Graphs are cached per line of code, not per model, so those of another test would be reused."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace graph and gradient without compiling machine code: seconds instead of a minute."""

    def trace(self: Block, **options: object) -> None:
        torch.nn.Module.compile(self, backend="aot_eager", **options)

    monkeypatch.setattr(Block, "compile", trace, raising=False)


def kind_of(config: ModelConfig, layer: int) -> tuple[object, ...]:
    """Two blocks of one kind share their code."""
    return (
        config.mixer_of(layer),
        config.has_depth_router(layer),
        config.positions_of(layer),
        config.window_of(layer),
        config.counts_cells(layer),
    )


def num_graphs() -> int:
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def pair(model: str | Transformer) -> tuple[Transformer, Transformer]:
    """Build a model and a compiled copy, both in training mode."""
    plain = copy.deepcopy(tiny_model(model) if isinstance(model, str) else model).train()
    compiled = copy.deepcopy(plain)
    compiled.compile_blocks()
    return plain, compiled


def step(model: Transformer, ids: torch.Tensor, **how: bool) -> tuple[ModelOutput, torch.Tensor]:
    """One step of training without an optimizer: output and all gradients, flat."""
    out = model(ids, **how)
    loss, _ = training_loss(model, out, (ids + 1) % V, torch.ones_like(ids, dtype=torch.bool), LossConfig())
    model.zero_grad()
    loss.backward()
    model.observe(out)
    return out, torch.cat([weight.grad.flatten() for weight in model.parameters()])


def assert_the_same(one: ModelOutput, other: ModelOutput, tolerance: float) -> None:
    for decision, found in decisions(one).items():
        assert torch.equal(found, decisions(other)[decision]), decision
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=tolerance)


@pytest.mark.slow
@needs_compiler
def test_inductor_trains_as_torch_does_and_compiles_once() -> None:
    """Batches of other text have other routes and must not be compiled again; evaluation is not compiled at all.

    A model whose blocks are all of one kind, for the machine code of a second kind takes as long again.
    """
    plain, compiled = pair("exits_none")
    for seed in range(4):
        out, gradients = step(plain, tiny_ids(seed))
        out_compiled, gradients_compiled = step(compiled, tiny_ids(seed))
        assert_the_same(out, out_compiled, INDUCTOR_TOLERANCE)
        torch.testing.assert_close(gradients, gradients_compiled, rtol=0, atol=INDUCTOR_TOLERANCE)
        assert num_graphs() == 1
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        assert_the_same(plain.eval()(tiny_ids(9, batch=3)), compiled.eval()(tiny_ids(9, batch=3)), 0.0)
    assert num_graphs() == 1


@pytest.mark.slow
@needs_compiler
def test_inductor_trains_heads_positions_and_windows_as_torch_does() -> None:
    """Two layers of one kind that has them all: heads by mass with a predictor, contextual positions, a window."""
    model = Transformer(
        variant(
            num_layers=2,
            heads={"routing": "top_p", "shared_heads": 1, "heads_per_token": 3, "per_token": True},
            attention={
                "positions": "cope",
                "max_positions": 6,
                "window": 12,
                "window_kind": "learned",
                "window_least": 2,
            },
            ffn={"routing": "dense", "dim": 40},
        )
    )
    season(model, seed=0)
    plain, compiled = pair(model)
    for seed in range(3):
        out, gradients = step(plain, tiny_ids(seed))
        out_compiled, gradients_compiled = step(compiled, tiny_ids(seed))
        assert_the_same(out, out_compiled, INDUCTOR_TOLERANCE)
        torch.testing.assert_close(gradients, gradients_compiled, rtol=0, atol=INDUCTOR_TOLERANCE)
        assert num_graphs() == 1


@pytest.mark.slow
@needs_compiler
def test_inductor_recomputes_activations_as_torch_keeps_them() -> None:
    """T38 with T39, in fp32: routes equal, logits and gradients within rounding, those of a model that keeps all."""
    model = Transformer(variant(num_layers=2))
    season(model, seed=0)
    plain, compiled = pair(model)
    for seed in range(3):
        out, gradients = step(plain, tiny_ids(seed))
        out_compiled, gradients_compiled = step(compiled, tiny_ids(seed), checkpoint_activations=True)
        assert_the_same(out, out_compiled, INDUCTOR_TOLERANCE)
        torch.testing.assert_close(gradients, gradients_compiled, rtol=0, atol=INDUCTOR_TOLERANCE)
        assert num_graphs() == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "half"), [("both_none", False), ("exits_none", True)], ids=["fp32", "bf16"])
def test_the_backward_pass_of_a_compiled_block_decides_no_route_again(
    monkeypatch: pytest.MonkeyPatch, name: str, half: bool
) -> None:
    """T38: the backward graph contains norms, products and experts, but no operation that decides a route.

    The graph is the one that inductor's decompositions and partitioner make. In bf16 it does not repeat the forward
    pass of blockwise attention either.
    """
    monkeypatch.setattr(attention, "LEAST_TIME", 1)

    def cut(self: Block, **options: object) -> None:
        torch.nn.Module.compile(self, backend="aot_eager_decomp_partition", **options)

    monkeypatch.setattr(Block, "compile", cut, raising=False)
    runs = {}
    for recompute in (False, True):
        _, compiled = pair(name)
        ids = tiny_ids()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = compiled(ids, checkpoint_activations=recompute)
        with Counted() as counted:
            out.logits.float().square().mean().backward()
        runs[recompute] = counted.runs
        assert num_graphs() == (1 + recompute) * KINDS[name]
    for operation in ["aten.rsqrt.default", "aten.mm.default", "adaptive_lm.experts_forward.default"]:
        assert runs[True][operation] > runs[False][operation], operation
    assert (runs[True]["adaptive_lm.attention_backward.default"] > 0) == half
    choosing = ["aten.sort.stable", "aten.lt.Tensor", "aten.gt.Tensor", "aten.ge.Tensor"]
    for operation in [*choosing, "adaptive_lm.attention_forward.default"]:
        assert runs[True][operation] == runs[False][operation] == 0, operation
    # the one repeated per layer is not the router's; with the router's there would be two
    assert (runs[True]["aten.eq.Tensor"], runs[False]["aten.eq.Tensor"]) == (compiled.config.num_layers, 0)


@pytest.mark.usefixtures("traced_only")
def test_no_routing_costs_a_graph() -> None:
    """No pair at all, every pair, and thresholds between: all through the graphs of the first batch."""
    plain, compiled = pair("both_none")
    layers, ids = plain.config.num_layers, tiny_ids()

    used = []
    for given in ((0.6, 0.5, 0.6), (0.1, 2.0, 0.0), (1.0, 0.0, 1.0), (0.5, 2.0, 1.0)):
        limits = even_thresholds(layers, *given)
        out, out_compiled = plain(ids, limits), compiled(ids, limits)
        assert_the_same(out, out_compiled, 0.0)
        out_compiled.logits.sum().backward()
        used.append(decisions(out)["selected_experts"].sum((1, 2, 3)).tolist())
        assert num_graphs() == KINDS["both_none"]
    assert used[1][1:] == [0, 0, 0], "every token left after the first layer"
    assert used[2] == [ids.numel() * 4] * layers


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(("name", "half"), [("exits_none", False), ("both_none", True)], ids=["fp32", "bf16"])
def test_graphs_are_one_per_kind_of_block_and_way_of_running(name: str, half: bool) -> None:
    """Training, recomputing and inference: each a graph per kind of block."""
    plain, compiled = pair(name)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        for ways, recompute in enumerate((False, True), 1):
            out, gradients = step(plain, tiny_ids(), checkpoint_activations=recompute)
            out_compiled, gradients_compiled = step(compiled, tiny_ids(), checkpoint_activations=recompute)
            assert_the_same(out, out_compiled, 0.0)
            assert torch.equal(gradients, gradients_compiled)
            assert num_graphs() == ways * KINDS[name]
        plain.eval(), compiled.eval()
        for seed in range(3):
            with torch.no_grad():
                assert_the_same(plain(tiny_ids(seed)), compiled(tiny_ids(seed)), 0.0)
            assert num_graphs() == 3 * KINDS[name]


NEW = ["heads_shared", "window_length", "window_entropy", "controllers"]
NEW += ["layer_norm", "post_none", "sandwich_project", "parallel_none", "learned_positions_none"]
NEW += ["retnet_hybrid_none", "mamba2_hybrid_project"]
NEW += ["everything_project", "everything_none"]  # shared experts, contextual positions and skipped keys are in these


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    "name",
    [
        "top_k",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("retnet_project", "mamba2_none", "dense_both_none", *NEW)),
    ],
)
def test_every_kind_of_model_compiles_whole(name: str) -> None:
    """T39. Blocks that differ in shape, positions or window have a graph each."""
    plain, compiled = pair(name)
    out, gradients = step(plain, tiny_ids())
    out_compiled, gradients_compiled = step(compiled, tiny_ids())
    assert_the_same(out, out_compiled, 0.0)
    assert torch.equal(gradients, gradients_compiled)
    assert num_graphs() == len({kind_of(plain.config, layer) for layer in range(4)})


@pytest.mark.usefixtures("traced_only")
def test_a_compiled_model_saves_the_same_names() -> None:
    """T22: the checkpoint of a compiled model has the same names."""
    plain, compiled = pair("top_p")
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
@pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
@needs_compiler
def test_inductor_takes_a_layer_of_onednn_in_one_piece() -> None:
    """With what surrounds it, and the gradients, as without inductor."""
    layer = Linear(12, 20)
    layer.onednn = True
    x = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def around(x: torch.Tensor) -> torch.Tensor:
        left, right = layer(x * 2).chunk(2, -1)
        return torch.nn.functional.silu(left) * right

    compiled = torch.compile(around, fullgraph=True)
    for one, other in zip(
        torch.autograd.grad(around(x).sum(), [x, layer.weight]),
        torch.autograd.grad(compiled(x).sum(), [x, layer.weight]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    "settings",
    [
        {"attention": {"window": tuple(range(2, 12))}},
        {"ffn": {"routing": "dense", "dim": tuple(range(16, 56, 4))}},
    ],
    ids=["windows", "widths"],
)
def test_a_model_may_have_more_kinds_of_blocks_than_torch_compiles_of_a_function(settings: dict[str, Any]) -> None:
    plain, compiled = pair(Transformer(variant(num_layers=10, **settings)))
    out, gradients = step(plain, tiny_ids(0))
    out_compiled, gradients_compiled = step(compiled, tiny_ids(0))
    assert_the_same(out, out_compiled, INDUCTOR_TOLERANCE)
    torch.testing.assert_close(gradients, gradients_compiled, rtol=0, atol=INDUCTOR_TOLERANCE)
    assert num_graphs() == 10
