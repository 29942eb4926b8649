"""`adaptive calibrate`: the curve that it writes, what it leaves alone, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.graphs import rich_graph, tiny_graph
from support.graphs.rich_graph import STORY, expected
from support.graphs.tiny_graph import TOKENS, E, L, write_manifest

from adaptive_lm.runtime import Dial, Engine, Manifest, UserError, load
from adaptive_lm.runtime.calibration.calibrate import CalibrateParams, check_rises, halves
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.execution.usage.total import Total
from adaptive_lm.runtime.format.files import digest
from adaptive_lm.runtime.measuring.quality.divergence import Point, diverge
from adaptive_lm.runtime.measuring.quality.perplexity import Score, Window, score, windows
from adaptive_lm.serve.cli import group

QUICK = ["--tokens", "512", "--repeats", "1", "--new-tokens", "8"]


def run(folder: Path, *args: str) -> Result:
    command = ["calibrate", "--model", str(folder), "--device", "cpu", "--threads", "1", *QUICK, *args]
    return CliRunner().invoke(group, command)


@pytest.fixture(scope="module")
def calibrated(rich: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Calibrate a copy of the rich model, and return its folder and the result of the command."""
    import shutil

    place = tmp_path_factory.mktemp("calibrated")
    shutil.copy(rich.parent / "heldout.txt", place)
    folder = Path(shutil.copytree(rich, place / "model"))
    return folder, run(folder, "--tokens", "1024", "--json")


def test_the_points_rise_in_cost_and_each_threshold_moves_one_way(calibrated: tuple[Path, Result]) -> None:
    folder, result = calibrated
    assert result.exit_code == 0, result.stderr
    points = Manifest.read(folder).curve.points  # type: ignore[union-attr]
    assert 10 <= len(points) <= 20
    assert points[-1].compute == 1
    shares = [one.executed_share for one in points]
    assert shares == sorted(set(shares)), "strictly"
    for name, sign in (("router_top_p", 1), ("head_top_p", 1), ("exit_threshold", 1), ("depth_threshold", -1)):
        levels = np.array([getattr(one.thresholds, name) for one in points])
        assert (np.diff(levels, axis=0) * sign >= 0).all()
    everything = points[-1]
    assert everything.experts_per_token == E
    assert everything.layers_per_token == L
    assert everything.thresholds.depth_threshold == [0] * L


def test_each_point_executes_about_what_it_is_called(calibrated: tuple[Path, Result]) -> None:
    for point in Manifest.read(calibrated[0]).curve.points[:-1]:  # type: ignore[union-attr]
        assert point.executed_share == pytest.approx(point.compute, abs=0.03)


@pytest.mark.parametrize(("bent", "least", "most"), [(1.0, 10, 10), (0.004, 11, 40)])
def test_a_dial_that_bends_between_two_points_gets_a_third(
    rich_copy: Path, monkeypatch: pytest.MonkeyPatch, bent: float, least: int, most: int
) -> None:
    monkeypatch.setattr("adaptive_lm.runtime.calibration.curve_points.BENT", bent)
    result = run(rich_copy, "--tokens", "1024", "--repeats", "0", "--json")
    points = json.loads(result.stdout)["curve"]["points"]
    assert least <= len(points) <= most
    asked = [one["compute"] for one in points]
    assert asked == sorted(set(asked))


def test_between_two_points_about_as_much_is_executed_as_is_asked(calibrated: tuple[Path, Result]) -> None:
    """Not exactly: the text of the rich graph has but thirty different bytes, so cost moves in steps."""
    folder, _ = calibrated
    engine = load(folder, device="cpu", threads=1)
    _, reporting, _ = halves(engine, folder, CalibrateParams(tokens=1024))
    for compute in np.linspace(0.26, 0.86, 25):
        found = score(engine, resolve(engine.manifest, Dial(compute=float(compute))), reporting, logits=False)
        assert found.executed_share == pytest.approx(compute, abs=0.04)


def test_what_is_worth_least_goes_first(calibrated: tuple[Path, Result]) -> None:
    """A head of the rich graph adds next to nothing, an expert much: heads are dropped, and experts kept."""
    points = Manifest.read(calibrated[0]).curve.points  # type: ignore[union-attr]
    high = next(one for one in reversed(points) if one.compute < 0.8)
    assert high.heads_per_token < 1.5
    assert high.experts_per_token > 3.9
    losses = [one.loss for one in points]
    assert losses == sorted(losses, reverse=True)


def test_the_figures_are_of_the_half_that_nothing_was_chosen_on(calibrated: tuple[Path, Result]) -> None:
    folder, _ = calibrated
    engine = load(folder, device="cpu", threads=1)
    curve = engine.manifest.curve
    assert curve is not None
    _, reporting, name = halves(engine, folder, CalibrateParams(tokens=1024))
    assert (curve.text, curve.tokens) == (name, 512)
    for point in (curve.points[0], curve.points[4], curve.points[-1]):
        found = score(engine, resolve(engine.manifest, Dial(compute=point.compute)), reporting)
        assert found.executed_share == pytest.approx(point.executed_share, abs=1e-5)
        assert found.loss == pytest.approx(point.loss, abs=1e-5)
        assert found.bits_per_byte == pytest.approx(point.bits_per_byte, abs=1e-5)
    full = Point(engine, resolve(engine.manifest, Dial(compute=1)))
    for point in (curve.points[0], curve.points[-1]):
        distance = diverge(full, [Point(engine, resolve(engine.manifest, Dial(compute=point.compute)))], reporting)[0]
        assert (distance.kl, distance.agreement) == pytest.approx((point.kl, point.agreement), abs=1e-5)
    assert (curve.points[-1].kl, curve.points[-1].agreement) == (0, 1)
    assert curve.points[0].kl > 0.1  # type: ignore[operator]


def test_the_halves_share_no_token_and_are_both_of_the_whole_text(rich: Path) -> None:
    engine = load(rich, device="cpu", threads=1)
    choosing, reporting, _ = halves(engine, rich, CalibrateParams(tokens=1000))
    text = (STORY * 30).encode()
    both = [one for pair in zip(choosing, reporting, strict=True) for one in pair]
    assert [token for one in both for token in one.ids] == list(text[:1000])
    assert [token for one in both for token in one.targets] == list(text[1:1001])
    assert len(both) >= 8


def test_agreement_is_what_an_exit_at_that_threshold_gives(calibrated: tuple[Path, Result]) -> None:
    folder, _ = calibrated
    engine = load(folder, device="cpu", threads=1)
    curve = engine.manifest.curve
    assert curve is not None
    assert [one.share for one in curve.agreement] == [0.9, 0.95, 0.99]
    _, reporting, _ = halves(engine, folder, CalibrateParams(tokens=1024))
    whole = np.concatenate(score(engine, resolve(engine.manifest, Dial()), reporting).choices)
    for one in curve.agreement:
        assert one.measured >= one.share
        found = score(engine, resolve(engine.manifest, Dial(agreement=one.share)), reporting)
        assert float((np.concatenate(found.choices) == whole).mean()) == pytest.approx(one.measured, abs=1e-5)
        assert found.tally.layers_per_token == pytest.approx(one.layers_per_token, abs=1e-3)
    assert curve.agreement[0].layers_per_token < L


def test_a_choice_is_a_token_and_never_padding(rich_engine: Engine) -> None:
    ids = [int(token) for token in np.random.default_rng(2).integers(0, TOKENS, size=200)]
    found = score(rich_engine, resolve(rich_engine.manifest, Dial()), [Window(ids, ids, 1)]).choices[0]
    logits = expected(ids, 0.5, 0.4, 1, 0.8).logits
    assert (logits.argmax(axis=1) >= TOKENS).any(), "padding would be chosen"
    np.testing.assert_array_equal(found, logits[:, :TOKENS].argmax(axis=1))


def test_nothing_but_the_curve_changes(rich: Path, calibrated: tuple[Path, Result]) -> None:
    folder, _ = calibrated
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in rich.iterdir()), "no temporary file stays"
    before, after = (json.loads((one / "manifest.json").read_bytes()) for one in (rich, folder))
    assert before | {"curve": after["curve"]} == after
    assert before["curve"] is None
    for name in names:
        assert name == "manifest.json" or digest(rich / name) == digest(folder / name)


def test_json_has_the_curve_and_says_whether_time_rises(calibrated: tuple[Path, Result]) -> None:
    folder, result = calibrated
    content = json.loads(result.stdout)
    assert content["mechanisms"] == ["experts", "heads", "depth", "exit"]
    assert content["curve"] == json.loads((folder / "manifest.json").read_bytes())["curve"]
    assert content["executed_rises"] is True
    medians = [one["milliseconds_per_token"]["median"] for one in content["curve"]["points"]]
    assert content["time_rises"] == (medians == sorted(set(medians)))
    assert content["curve"]["machine"]["threads"] == 1


def test_the_story_says_what_is_adapted_and_how_long_it_takes(calibrated: tuple[Path, Result]) -> None:
    folder, result = calibrated
    assert "512 tokens of heldout.txt to choose on, 512 to report on" in result.stderr
    assert "adapting experts, heads, depth, exit; this takes about" in result.stderr
    assert 'next: adaptive generate "..." --compute 0.5' in result.stderr
    assert (folder.parent / "model-calibration.png").read_bytes()[:4] == b"\x89PNG"


def test_people_read_a_table(rich_copy: Path) -> None:
    result = run(rich_copy, "--agreement", "0.5", "--plot", str(rich_copy.parent / "curve.svg"))
    lines = result.stdout.splitlines()
    assert lines[0].split()[:10] == [
        "compute", "executed", "loss", "bits/byte", "KL", "agreement", "experts", "heads", "layers", "exit",
    ]  # fmt: skip
    points = Manifest.read(rich_copy).curve.points  # type: ignore[union-attr]
    assert lines[len(points)].split()[:2] == ["1.000", f"{points[-1].executed_share:.1%}"]
    assert "measured on 256 tokens of heldout.txt" in lines[len(points) + 1]
    assert lines[-1].startswith("agreement 0.5 (confidence 0.95): leave above")
    assert max(map(len, lines)) <= 160
    assert (rich_copy.parent / "curve.svg").read_text().startswith("<?xml")


def test_generation_at_a_compute_executes_about_that(calibrated: tuple[Path, Result]) -> None:
    def share(*args: str) -> Any:
        command = ["generate", STORY[:40], "--json", "--seed", "1", "--max-new-tokens", "100", "--model",
                   str(calibrated[0]), "--threads", "1", *args]  # fmt: skip
        result = CliRunner().invoke(group, command)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["usage"]["executed_flops_share"]

    shares = [share("--compute", value) for value in ("0.4", "0.6", "0.8", "1.0")]
    assert shares == sorted(shares)
    assert shares[1] == pytest.approx(0.6, abs=0.1)


def test_a_second_text_can_be_given_and_is_named(rich_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(STORY * 12)
    (tmp_path / "heldout.txt").unlink()
    assert run(rich_copy, "--data", str(tmp_path / "other.txt"), "--repeats", "0").exit_code == 0
    curve = Manifest.read(rich_copy).curve
    assert curve is not None
    assert curve.text == "other.txt"
    assert curve.points[0].milliseconds_per_token is None


def test_the_model_can_stand_in_the_place_of_an_argument(rich_copy: Path) -> None:
    command = ["calibrate", str(rich_copy), *QUICK, "--repeats", "0", "--threads", "1", "--json"]
    result = CliRunner().invoke(group, command)
    assert result.exit_code == 0, result.stderr
    assert f"--model {rich_copy}" in result.stderr


def test_a_second_calibration_replaces_the_first(rich_copy: Path) -> None:
    run(rich_copy, "--repeats", "0", "--agreement", "0.5")
    run(rich_copy, "--repeats", "0", "--agreement", "0.6")
    curve = Manifest.read(rich_copy).curve
    assert curve is not None
    assert [one.share for one in curve.agreement] == [0.6]


@pytest.mark.parametrize(
    "where", ["calibrate.score", "curve_points.path", "calibrate.time_points", "calibrate.write_output"]
)
def test_ctrl_c_leaves_the_model_as_it_was(rich_copy: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    before = (rich_copy / "manifest.json").read_bytes()

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"adaptive_lm.runtime.calibration.{where}", interrupted)
    result = run(rich_copy)
    assert result.exit_code == 130
    assert f"stopped; {rich_copy} is unchanged" in result.stderr
    assert (rich_copy / "manifest.json").read_bytes() == before
    assert len(list(rich_copy.iterdir())) == 4


def test_a_disk_that_is_full_leaves_the_model_as_it_was(rich_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (rich_copy / "manifest.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adaptive_lm.contract.files.os.fsync", full)
    result = run(rich_copy, "--repeats", "0")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert (rich_copy / "manifest.json").read_bytes() == before
    assert len(list(rich_copy.iterdir())) == 4


def test_a_curve_that_is_not_monotone_is_refused() -> None:
    def ran(share: float) -> Score:
        return Score(Total(tokens=1, executed_flops=share, dense_flops=1))

    check_rises([0.5, 0.6, 1], [ran(0.5), ran(0.5), ran(1)])
    with pytest.raises(UserError, match=r"not monotone .*0\.6 ran 40\.0%.*nothing was written.*--tokens"):
        check_rises([0.5, 0.6, 1], [ran(0.5), ran(0.4), ran(1)])


PLAIN = [{"routing": "dense", "num_experts": 1, "depth_router": False, "exit": False}] * L


def test_a_model_with_nothing_to_adapt_says_so(copy: Path, changed: Callable[..., Path]) -> None:
    (copy.parent / "heldout.txt").write_text(STORY * 30)
    result = run(changed(model={"layers": PLAIN}))
    assert result.exit_code == 1
    assert "this model has nothing to adapt" in result.stderr
    assert "Traceback" not in result.stderr


def test_exits_that_cost_more_than_they_save_are_left_closed(copy: Path) -> None:
    (copy.parent / "heldout.txt").write_text(STORY * 30)
    content = json.loads((copy / "manifest.json").read_bytes())
    for layer in content["costs"]["flops"]["layers"]:
        layer["exit_check"] = 10_000.0
    result = run(write_manifest(copy, costs=content["costs"]), "--json", "--repeats", "0")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["mechanisms"] == ["experts", "depth"]
    assert all(one.thresholds.exit_threshold == [1] * L for one in Manifest.read(copy).curve.points)  # type: ignore[union-attr]


@pytest.mark.parametrize("gain", [1.0, -1.0], ids=["all on", "own"])
def test_heads_that_save_nothing_are_settled_by_their_loss(
    rich_copy: Path, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    """A graph that computes every head and multiplies by 0 saves nothing by fewer heads, so the path keeps all."""
    monkeypatch.setitem(rich_graph.GAIN, "head", gain)
    costs = rich_graph.sections()["costs"]
    for layer in costs["flops"]["layers"]:
        layer |= {"head": 0, "head_per_key": 0}
    rest = {name: value for name, value in rich_graph.sections().items() if name != "costs"}
    folder = tiny_graph.write_model(rich_copy, rich_graph.graph(), **rest, costs=costs)
    result = run(folder, "--repeats", "0", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["mechanisms"] == ["experts", "depth", "exit"]
    level = 1.0 if gain > 0 else 0.8
    points = Manifest.read(folder).curve.points  # type: ignore[union-attr]
    assert all(one.thresholds.head_top_p == [level] * L for one in points)
    assert f"heads save no FLOPs of this graph: they stay {'all on' if gain > 0 else 'at the'}" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--tokens", "100"], 2, "found --tokens 100, expected at least 512"),
        (["--repeats", "-1"], 2, "found --repeats -1, expected at least 0"),
        (["--agreement", "1"], 2, "found --agreement 1.0, expected above 0 and below 1"),
        (["--agreement", "nan"], 2, "found --agreement nan"),
        (
            ["--data", "/nowhere.txt"],
            1,
            "cannot read /nowhere.txt: No such file or directory; check the path and its permissions",
        ),
        (["--data", "x.json"], 1, "x.json holds records, expected plain text in UTF-8; leave --data out"),
        (["--plot", "x.bmp"], 2, "expected a name ending in .png"),
        (["another"], 2, "found two models, expected one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_setting_is_answered_with_one_line(rich_copy: Path, args: list[str], code: int, message: str) -> None:
    result = run(rich_copy, *args)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_too_short_a_text_gives_both_numbers(rich_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(STORY[:90])
    result = run(rich_copy, "--data", str(tmp_path / "short.txt"))
    assert "found a text of 89 tokens, expected at least 512; give a longer one" in result.stderr
    (tmp_path / "heldout.txt").unlink()
    assert "expected what training held out; give a text with: --data FILE" in run(rich_copy).stderr


@pytest.mark.parametrize(("count", "length"), [(10, 4), (8, 4), (3, 100)])
def test_windows_hold_every_token_once(rich: Path, count: int, length: int) -> None:
    from adaptive_lm.runtime.measuring.quality.perplexity import Text

    tokenizer = load(rich, device="cpu", threads=1).tokenizer
    ids, spans = tokenizer.encode_with_spans("Fjällen växer")
    found = windows(Text("Fjällen växer", ids, spans), count, length)
    assert [token for one in found for token in one.ids] == ids[:count]
    assert [token for one in found for token in one.targets] == ids[1 : count + 1]
    assert max(len(one.ids) for one in found) <= length
