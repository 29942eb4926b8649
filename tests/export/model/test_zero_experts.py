"""Models whose tokens may run a layer without an expert: exported, decoded, dialled, calibrated and inspected."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.cases import each
from support.graphs.bare_graph import Graph, Sequences, same_decisions
from support.models import CONFIGS, ZERO, even_thresholds, judge, season, tiny_ids, variant
from support.operators.our_library import MISSING
from support.quick_check import quick_check
from support.runs import write_run

from adaptive_lm.contract.errors import UserError
from adaptive_lm.export.costs import costs, cuda_costs
from adaptive_lm.export.cuda.experts import is_fused
from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.fused.transformer import build as build_fused
from adaptive_lm.export.model.transformer import build
from adaptive_lm.export.outgoing.gguf_family import family_of
from adaptive_lm.export.outgoing.hf_family import outgoing
from adaptive_lm.export.proof.parity import TOLERANCE
from adaptive_lm.export.source import weights_of
from adaptive_lm.runtime import Dial, Engine, Manifest, Params, load
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.runtime.ops.layout import PRECISIONS
from adaptive_lm.serve.cli import group
from adaptive_lm.train.model import ModelConfig, Transformer

KINDS: dict[str, dict[str, Any]] = {
    "zero_experts": {"num_experts": 4, "expert_dim": 16, "zero_experts": ZERO, "experts_per_token": 0.9},
    "relu": {"num_experts": 2, "expert_dim": 16, "routing": "relu", "experts_per_token": 1.2},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a run of each kind with its check, for the targets portable and cpu."""
    kind: str = request.param
    run = write_run(tmp_path_factory.mktemp(kind) / "runs" / kind, ffn=KINDS[kind])
    with quick_check():
        run_export(str(run), run / "model", threads=1)
    return run / "model"


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder, device="cpu", threads=1)


def test_the_manifest_says_that_a_token_may_have_no_expert(folder: Path) -> None:
    manifest = Manifest.read(folder)
    for layer in manifest.model.layers:
        assert layer.num_experts == (4 if layer.routing == "top_p" else 2)
        assert layer.least_experts == 0
        assert layer.dials_experts
        kinds = ["zero", "copy", "constant", "constant"] if layer.routing == "top_p" else []
        assert layer.zero_experts == kinds


def test_the_tokens_of_a_text_use_from_no_expert_to_several_and_pay_for_those_they_use(engine: Engine) -> None:
    tokens = list(engine.generate("the sun rises over", Params(max_new_tokens=120, temperature=2.0, seed=1)))
    used = [len(experts) for token in tokens for experts in (token.usage.experts[i] for i in token.usage.layers_run)]
    assert min(used) == 0
    assert max(used) >= 2
    flops = engine.manifest.costs.flops.layers
    for one in tokens:
        own = sum(flops[i].expert * len(one.usage.experts[i]) for i in one.usage.layers_run)
        assert one.usage.executed_flops >= own
        assert one.usage.executed_flops <= one.usage.dense_flops * 1.5


@each("wanted", [0.3, 1.0, 2.0])
def test_an_average_below_1_can_be_asked_for(engine: Engine, wanted: float) -> None:
    """It holds on the text that the table was made on; here the direction is enough."""
    level = resolve(engine.manifest, Dial(experts=wanted)).router_top_p
    assert (level > 0).all()
    assert (level <= resolve(engine.manifest, Dial(experts=2)).router_top_p).all()
    most = engine.manifest.model.num_experts
    with pytest.raises(UserError, match=f"give 0 to {most}"):
        resolve(engine.manifest, Dial(experts=most + 1))


def test_calibrate_and_inspect_know_tokens_without_an_expert(folder: Path) -> None:
    options = ["--model", str(folder), "--device", "cpu", "--threads", "1", "--json"]
    extra = ["--tokens", "2048", "--repeats", "0"]
    calibrated = CliRunner().invoke(group, ["calibrate", *options, *extra])
    assert calibrated.exit_code == 0, calibrated.output
    points = json.loads(calibrated.stdout)["curve"]["points"]
    experts = [point["experts_per_token"] for point in points]
    assert experts[0] < 1
    assert experts[0] < experts[-1]
    inspected = CliRunner().invoke(group, ["inspect", *options, "--tokens", "400"])
    assert inspected.exit_code == 0, inspected.output
    content = json.loads(inspected.stdout)
    for choice in content["experts"]["choices"]:
        assert choice["how_many"][0] > 0, "tokens without an expert"
    has_zero = Manifest.read(folder).model.most_zero_experts > 0
    assert (content["zero_experts"] is not None) == has_zero
    if has_zero:
        assert all(len(choice["share"]) == 4 for choice in content["zero_experts"]["choices"])


def lonely(kind: str) -> Transformer:
    """Return a model in which no token takes an expert under `relu`, and some tokens do with `zero_experts`."""
    config = variant(ffn={"routing": "relu"} if kind == "relu" else {"zero_experts": {"zeros": 1, "constants": 1}})
    model = Transformer(config)
    season(model, seed=3)
    with torch.no_grad():
        for block in model.blocks():
            assert block.moe is not None
            block.moe.router.weight.zero_()
            if kind != "relu":  # a token whose normed state has a positive sum takes the constant
                block.moe.router.weight[4:] = torch.tensor([[0.05], [0.1]])
    return model.eval()


@each("target", ["portable"] if MISSING else ["portable", "cpu"])
@each("precision", PRECISIONS)
@each("kind", ["relu", "zero_experts"])
def test_a_pass_in_which_no_token_takes_an_expert_runs(kind: str, precision: Precision, target: str) -> None:
    """Nothing is dispatched: the graph must not read the first of no rows. A logit of 0 is not positive."""
    model, ids = lonely(kind), tiny_ids(batch=1, time=6)
    make = build if target == "portable" else build_fused
    graph = Graph(make(model.config, weights_of(model), Precisions.of(precision)), model.config)
    limits = even_thresholds(4, top_p=1.0 if kind == "relu" else 1e-6)
    whole = Sequences(graph).run(ids.numpy(), limits)
    alone = Sequences(graph).steps(ids.numpy(), limits)
    same_decisions(alone, whole)
    none = ~whole.selected_experts.any((0, 3))
    assert none.all() if kind == "relu" else (~whole.selected_experts.any(3)).any()
    if precision == "fp32":
        plain = judge(model, ids, limits)
        np.testing.assert_allclose(whole.logits, plain.logits, rtol=0, atol=TOLERANCE["fp32"])
    if target == "cpu":
        np.testing.assert_array_equal(whole.logits, alone.logits)


def test_constants_and_their_vectors_are_counted_with_the_router() -> None:
    plain, zero = variant(), variant(ffn={"zero_experts": ZERO})
    before, after = (costs(config, Precisions.of("fp32")).flops.layers[0] for config in (plain, zero))
    rows = ZERO["zeros"] + ZERO["copies"] + ZERO["constants"] + 2 * ZERO["constants"]
    assert after.router - before.router == 2 * 32 * rows
    assert after.expert == before.expert


@pytest.mark.parametrize(
    "ffn",
    [{"routing": "relu"}, {"zero_experts": ZERO}, {"zero_experts": ZERO, "routing": "top_k", "experts_per_token": 2}],
)
def test_the_graph_for_cuda_computes_every_expert(ffn: dict[str, Any]) -> None:
    config = variant(ffn={**ffn, "expert_dim": 16})
    assert is_fused(config)
    layer = cuda_costs(config, Precisions.of("fp32"), "fp32").flops.layers[0]
    assert layer.expert == 0
    assert layer.shared_expert == 4 * 3 * 2 * 32 * 16


@pytest.mark.parametrize("config", [CONFIGS["relu"], CONFIGS["zero_experts_none"]], ids=["relu", "zero_experts"])
def test_formats_of_others_refuse_them_by_name(config: ModelConfig) -> None:
    plain = config.model_copy(update={"depth": variant().depth})
    with pytest.raises(UserError, match="experts"):
        outgoing(plain)
    with pytest.raises(UserError, match="experts"):
        family_of(plain)
