"""Scales of int8 and int4 chosen by activations: the search, the inputs that it sees, and where the scales go."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from support.cases import each
from support.models import variant
from support.operators.our_library import MISSING
from support.runs import text, write_run

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.file_names import target_files
from adaptive_lm.export.calibration import FACTORS, Powers, calibrate, record, search
from adaptive_lm.export.graph.weights import is_matrix, part_of
from adaptive_lm.export.proof import quantisation
from adaptive_lm.export.source import Source, read
from adaptive_lm.runtime.format.manifest import Manifest, Precision, Precisions
from adaptive_lm.runtime.ops.layout import pack, rounded
from adaptive_lm.serve.cli import group
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.routing.router import Routes

INT4 = Precisions.of("int4")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "given.txt"
    path.write_text(text(lines=40, seed=3), encoding="utf-8")
    return path


def error_of(matrix: np.ndarray, power: np.ndarray, precision: Precision, scales: np.ndarray | None) -> float:
    return float((np.square(rounded(matrix, precision, scales).astype(np.float64) - matrix) * power).sum())


@each("precision", ["int8", "int4"])
@each("shape", [(5, 64), (70, 33), (1, 7)])
def test_the_search_finds_the_best_factor_of_each_block(shape: tuple[int, int], precision: Precision) -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_t(3, shape).astype(np.float32)
    power = random.random(shape[1]) ** 4
    factors, (error, plain) = search(matrix, power, precision)
    assert factors.shape == (shape[0], -(-shape[1] // 32))
    assert set(np.unique(factors)) <= set(np.float32(FACTORS))
    assert error == pytest.approx(error_of(matrix, power, precision, factors), rel=1e-9)
    assert plain == pytest.approx(error_of(matrix, power, precision, None), rel=1e-9)
    assert error <= plain
    for factor in FACTORS:  # no change of one block makes it better
        other = factors.copy()
        other[0, 0] = factor
        assert error_of(matrix, power, precision, other) >= error * (1 - 1e-9)


def test_a_weight_whose_input_is_zero_is_clipped_for_the_sake_of_the_others() -> None:
    matrix = np.full((1, 32), 0.3, np.float32) * np.linspace(0.5, 1, 32, dtype=np.float32)
    matrix[0, 5] = 1
    power = np.ones(32)
    power[5] = 0
    factors, (error, plain) = search(matrix, power, "int4")
    assert factors[0, 0] < 1
    assert error < 0.9 * plain


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_scales_given_to_the_layout_are_those_of_the_packed_bytes(precision: Precision) -> None:
    random = np.random.default_rng(1)
    stack = random.normal(size=(2, 70, 40)).astype(np.float32)
    scales = random.choice(FACTORS, (2, 70, 2)).astype(np.float32)
    assert not np.array_equal(pack(stack, precision, scales), pack(stack, precision))
    apart = np.concatenate([pack(one, precision, own) for one, own in zip(stack, scales, strict=True)])
    np.testing.assert_array_equal(pack(stack, precision, scales), apart)
    np.testing.assert_array_equal(pack(stack, precision, np.ones_like(scales)), pack(stack, precision))
    np.testing.assert_array_equal(rounded(stack, precision, scales)[1], rounded(stack[1], precision, scales[1]))


def test_the_inputs_of_every_matrix_are_seen() -> None:
    model = Transformer(variant(ffn={"shared_expert_dim": 20})).eval()
    ids, powers = torch.randint(29, (1, 30)), Powers()
    with torch.no_grad():
        before = model(ids).logits
    visits = record(model, ids, powers, 32)
    assert sorted(visits) == [0, 1, 2, 3]
    with torch.no_grad():
        out = model(ids)
        normed = model.blocks()[0].attention_norm(model.embedding(ids))
        np.testing.assert_allclose(
            powers.of("layers.0.attention.q.weight", (32, 32)), normed.square().mean((0, 1)), rtol=1e-5
        )
    torch.testing.assert_close(out.logits, before, rtol=0, atol=0)  # nothing still watches
    assert not any(module._forward_pre_hooks for module in model.modules())
    for layer, number in visits.items():
        routes = out.routing[layer].routes
        assert routes is not None
        np.testing.assert_array_equal(number, routes.selected_experts.sum(0))
    for name, parameter in model.named_parameters():
        if is_matrix(name, parameter.ndim) and name != "embedding.weight":
            shape = tuple(parameter.shape) if parameter.ndim == 2 else (*parameter.mT.shape,)
            power = powers.of(name, shape)
            assert power.shape == (*shape[:-2], shape[-1]), name
            assert (power > 0).any(-1).all(), name


def test_the_inputs_of_an_expert_are_those_of_its_tokens_and_an_equal_share_of_all() -> None:
    model, powers = Transformer(variant()).eval(), Powers()
    ids = torch.randint(29, (1, 30))
    seen: dict[str, torch.Tensor] = {}
    moe = model.blocks()[2].moe
    assert moe is not None
    hook = moe.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    record(model, ids, powers, 32)
    hook.remove()
    with torch.no_grad():
        routes = model(ids).routing[2].routes
    assert routes is not None
    for expert in range(4):
        shown = routes.selected_experts[:, expert].clone()
        shown[expert::4] = True
        rows = seen["x"][shown]
        np.testing.assert_allclose(
            powers.of("layers.2.moe.gate_up", (4, 24, 32))[expert], rows.square().mean(0), rtol=1e-5
        )
        gate, up = (rows @ moe.gate_up[expert]).chunk(2, -1)
        inner = (torch.nn.functional.silu(gate) * up).detach()
        np.testing.assert_allclose(
            powers.of("layers.2.moe.down", (4, 32, 12))[expert], inner.square().mean(0), rtol=1e-4, atol=1e-12
        )


def test_experts_that_the_text_never_visits_are_named_and_still_have_scales(source: Source, given: Path) -> None:
    moe = source.model.blocks()[1].moe
    assert moe is not None

    def select_none_of_two(module: torch.nn.Module, inputs: object, routes: Routes) -> None:
        routes.selected_experts[:, [0, 3]] = False

    hook = moe.router.register_forward_hook(select_none_of_two)
    try:
        calibration = calibrate(source, given, INT4)
    finally:
        hook.remove()
    assert calibration.unvisited == {1: [0, 3]}
    assert calibration.scales["layers.1.moe.down"].shape == (4, 32, 1)
    assert any("never visits experts 0, 3 of layer 1" in line for line in calibration.lines())
    assert calibration.report()["unvisited_experts"] == {"1": [0, 3]}
    assert 0 < calibration.error_share <= 1


def test_only_quantised_parts_get_scales(source: Source, given: Path) -> None:
    precisions = Precisions(experts="int4", attention="bf16", embedding="fp32", head="int8")
    scales = calibrate(source, given, precisions).scales
    assert {part_of(name) for name in scales} == {"experts", "head"}
    assert "layers.0.moe.gate_up" in scales


@pytest.mark.usefixtures("quick")
def test_the_exported_weights_have_the_calibrated_scales(
    here: Path, source: Source, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quantisation.MAX_WORSE, "int4", 0.1)  # a model that was never trained, scored on 128 tokens
    command = ["export", "tiny", "--threads", "1", "--quantize", "int4", "--calibrate-text", str(given)]
    done = CliRunner().invoke(group, command)
    assert done.exit_code == 0, done.output
    assert "calibrated 17 matrices on" in done.stderr
    report = Manifest.read("runs/tiny/model").parity["calibration"]
    assert report["text"] == "given.txt"
    assert 0 < report["error_share"] < 1
    graph, _ = target_files("cpu")
    written = {t.name: numpy_helper.to_array(t) for t in onnx.load(f"runs/tiny/model/{graph}").graph.initializer}
    scales = calibrate(source, given, INT4).scales
    for name, own in scales.items():
        value = np.asarray(source.weights()[name])
        matrix = value if value.ndim == 2 else value.swapaxes(1, 2)
        expected = pack(matrix, getattr(INT4, part_of(name)), own)
        np.testing.assert_array_equal(written[f"{name}.packed"], expected, err_msg=name)
    assert MISSING is not None or Manifest.read("runs/tiny/model").parity["targets"]["cpu"]["passed"] is True


def test_a_text_without_tokens_is_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"empty\.txt has 0 tokens, expected at least 2; give another --calibrate-text"):
        calibrate(source, tmp_path / "empty.txt", INT4)
    with pytest.raises(UserError, match=r"missing\.txt"):
        calibrate(source, tmp_path / "missing.txt", INT4)


def test_a_model_that_is_not_quantised_has_nothing_to_calibrate(here: Path, given: Path) -> None:
    for more in ([], ["--quantize", "bf16"]):
        done = CliRunner().invoke(group, ["export", "tiny", "--calibrate-text", str(given), *more])
        assert (done.exit_code, done.stdout) == (2, "")
        assert "add --quantize int8 or int4" in done.stderr


def test_a_run_with_tied_embeddings_is_calibrated_by_the_inputs_of_its_head(tmp_path: Path, given: Path) -> None:
    source = read(write_run(tmp_path / "runs" / "tied", tie_embeddings=True))
    powers = Powers()
    record(source.model, source.heldout_ids(32), powers, 32)
    power = powers.of("embedding.weight", (32, 32))
    assert not np.allclose(power, 1)
    assert calibrate(source, given, INT4).scales["embedding.weight"].shape[1] == 1
