"""`adaptive bench`: its figures, and that each measures what its name claims."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.cases import each
from support.graphs.rich_graph import CURVE
from support.graphs.state_graph import write_hybrid
from support.graphs.tiny_graph import TABLES, L, V, expected

from adaptive_lm.runtime import Dial, Engine, Manifest, Sequence
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.measuring.bench import tokens_to_read
from adaptive_lm.runtime.measuring.memory_bound import read_bandwidth
from adaptive_lm.runtime.measuring.quality.perplexity import Text, bits_per_byte, log_probabilities
from adaptive_lm.runtime.measuring.sweep import points
from adaptive_lm.runtime.measuring.timing import Timed, time_points
from adaptive_lm.serve.cli import group

SHORT = ["--prompt-tokens", "10", "--new-tokens", "12", "--repeats", "3"]
STORY = "Mountains form where plates meet; the crust folds, and rivers carve it. " * 20


@pytest.fixture(autouse=True)
def _small_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptive_lm.runtime.measuring.memory_bound.AT_LEAST", 2**24)
    monkeypatch.setattr("adaptive_lm.runtime.measuring.memory_bound.ROUNDS", 1)


@pytest.fixture
def bench(copy: Path) -> Callable[..., Result]:
    (copy.parent / "heldout.txt").write_text(STORY)

    def run(*args: str) -> Result:
        command = ["bench", "--model", str(copy), "--device", "cpu", "--threads", "1", *SHORT, *args]
        return CliRunner().invoke(group, command)

    return run


def test_json_has_the_keys_that_others_rely_on(bench: Callable[..., Result]) -> None:
    result = bench("--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert {"machine", "model", "prefill", "decode"} <= content.keys()
    assert "sweep" not in content
    decode = content["decode"]
    assert decode["milliseconds_per_token"].keys() == {"median", "p5", "p95"}
    assert decode["milliseconds_per_token"]["p5"] <= decode["milliseconds_per_token"]["median"]
    assert decode["tokens_per_second"] == pytest.approx(1000 / decode["milliseconds_per_token"]["median"], rel=1e-2)
    assert decode["memory_floor_share"] > 0
    assert content["model"]["load_seconds"] > 0
    assert content["model"]["peak_memory_bytes"] > 2**20
    assert content["settings"]["tokens_from"] == "text"
    assert content["machine"]["threads"] == 1
    assert (content["target"], content["kernel"], content["note"]) == ("portable", None, None)
    assert content["nodes_per_token"] > 10
    assert decode["cpu_milliseconds_per_token"] > 0
    assert content["prefill"]["cpu_milliseconds"] > 0


def test_contexts_show_what_grows_with_the_text(bench: Callable[..., Result], copy: Path) -> None:
    first, second = json.loads(bench("--json", "--contexts", "8,64").stdout)["contexts"]
    assert (first["context"], second["context"]) == (8, 64)
    assert first["ratio"] == {"median": 1.0, "p5": 1.0, "p95": 1.0}
    assert second["cache_bytes"] > first["cache_bytes"] > 0
    assert second["bytes_per_token"] > first["bytes_per_token"] + 3 * 56, "3 bytes a key in each layer that ran"
    assert first["state_bytes"] == 0
    table = bench("--contexts", "8,64").stdout.splitlines()
    assert table[6].split()[:3] == ["context", "ms", "per"]
    assert [line.split()[0] for line in table[7:9]] == ["8", "64"]


def test_states_do_not_grow_with_the_text(bench: Callable[..., Result], copy: Path) -> None:
    write_hybrid(copy, mixes=True, attention=False)
    result = bench("--json", "--contexts", "8,300")
    content = json.loads(result.stdout)
    first, second = content["contexts"]
    assert content["model"]["state_bytes"] == first["state_bytes"] == second["state_bytes"] == 4 * 6
    assert first["cache_bytes"] == second["cache_bytes"] == 0
    assert second["bytes_per_token"] == pytest.approx(first["bytes_per_token"], rel=0.3), "other tokens, no more keys"
    assert "states 0.0 KiB per text" in bench().stdout


def test_a_sweep_has_every_direction_and_all_its_figures(bench: Callable[..., Result], copy: Path) -> None:
    content = json.loads(bench("--json", "--sweep", "--text-tokens", "300").stdout)
    assert (copy.parent / "model-sweep.png").read_bytes()[:4] == b"\x89PNG"
    names = [point["name"] for point in content["sweep"]]
    assert names[:2] == ["all", "default"]
    assert {name.split()[0] for name in names} == {"all", "default", "experts", "layers", "exit"}
    for point in content["sweep"]:
        assert {"thresholds", "experts_per_token", "layers_per_token", "theoretical_share", "executed_share",
                "milliseconds_per_token", "bits_per_byte"} <= point.keys()  # fmt: skip
        assert set(point["thresholds"]) == {"router_top_p", "depth_threshold", "exit_threshold", "head_top_p"}
        assert point["theoretical_share"] <= point["executed_share"] or point["name"] == "all"
        assert point["bits_per_byte"] > 0
    whole = content["sweep"][0]
    assert whole["theoretical_share"] == whole["executed_share"] == whole["measured_share"] == 1
    assert whole["experts_per_token"] == 4
    assert whole["layers_per_token"] == L
    experts = [p["experts_per_token"] for p in content["sweep"] if p["name"].startswith("experts")]
    assert experts == sorted(experts, reverse=True)


def test_the_same_seed_counts_the_same(bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptive_lm.runtime.terminal.drawing.draw", lambda *args, **options: None)

    def counted(*args: str) -> list[tuple[Any, ...]]:
        sweep = json.loads(bench("--json", "--sweep", *args).stdout)["sweep"]
        return [(p["name"], p["executed_share"], p["experts_per_token"], p["bits_per_byte"]) for p in sweep]

    first = counted()
    assert counted() == first
    assert [p[1] for p in counted("--seed", "1")] != [p[1] for p in first]


def test_people_read_lines_and_a_table(bench: Callable[..., Result], tmp_path: Path) -> None:
    result = bench("--sweep", "--plot", str(tmp_path / "dial.svg"))
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["machine", "model", "prefill", "decode", "floor"]
    assert "target portable" in lines[1]
    assert lines[3].endswith(" nodes")
    assert "bits/byte" in lines[6]
    assert (tmp_path / "dial.svg").read_text().startswith("<?xml")
    assert "dial.svg" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--new-tokens", "100"], 1, "this model's context is 96"),
        (["--contexts", "8,90"], 1, "found a context of 90 tokens and 12 new ones; this model's context is 96"),
        (["--contexts", "8,x"], 2, "found '8,x', expected whole numbers, such as 64,1024"),
        (["--contexts", "0"], 2, "found --contexts 0, expected at least 1"),
        (["--repeats", "0"], 2, "found --repeats 0, expected at least 1"),
        (["--seed", "-1"], 2, "found --seed -1"),
        (["--plot", "x.png"], 2, "add --sweep"),
        (["--sweep", "--plot", "x.bmp"], 2, "expected a name ending in .png"),
        (["--sweep", "--plot", "/nowhere/x.png"], 1, "cannot write /nowhere/x.png"),
        (["--text", "/nowhere.txt"], 1, "cannot read /nowhere.txt"),
        (["--router-top-p", "2"], 2, "found --router-top-p 2.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_setting_is_answered_with_one_line(
    bench: Callable[..., Result], args: list[str], code: int, message: str
) -> None:
    result = bench(*args)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_without_held_out_text_it_says_so_and_measures_the_rest(bench: Callable[..., Result], copy: Path) -> None:
    (copy.parent / "heldout.txt").unlink()
    result = bench("--sweep", "--json")
    content = json.loads(result.stdout)
    assert content["settings"]["tokens_from"] == "random ids"
    assert content["sweep"][0]["bits_per_byte"] is None
    assert "no held-out text beside the model" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ab\xff", "text.txt, line 1: not UTF-8 (byte 0xff at offset 2)"),
        (b"a", "has 1 tokens, expected at least 2; give another --text FILE"),
    ],
    ids=["bytes", "short"],
)
def test_a_text_that_cannot_be_scored_is_named(
    bench: Callable[..., Result], tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    result = bench("--text", str(path))
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize("name", ["facts.json", "facts.JSONL", "facts.csv", "facts.parquet"])
def test_records_are_not_scored_as_if_their_braces_were_text(
    bench: Callable[..., Result], tmp_path: Path, name: str
) -> None:
    """Training reads such files record by record; bench, calibrate and inspect all refuse them here."""
    path = tmp_path / name
    path.write_text('[{"text": "Mountains form where plates meet."}]' * 20)
    result = bench("--text", str(path), "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{name} holds records, expected plain text in UTF-8; leave --text out" in result.stderr
    assert f"--text {path.with_suffix('.txt')}" in result.stderr


@each("count", [2, 60, 96, 97, 98, 250])
def test_bits_per_byte_are_those_of_a_slow_count(engine: Engine, count: int) -> None:
    """Over every token but the first, in windows of the context, whole or not."""
    text = ("Fjällen växer långsamt. " * 20)[:250]
    ids, spans = engine.tokenizer.encode_with_spans(text)
    found = bits_per_byte(engine, resolve(engine.manifest, Dial()), Text(text, ids, spans), count - 1)
    nats = 0.0
    for begin in range(0, count - 1, 96):
        window = ids[begin : min(begin + 96, count - 1)]
        logits = expected(window, 0.5, 0.4, 1)[0].astype(np.float64)
        for row, target in zip(logits, ids[begin + 1 :], strict=False):
            nats -= math.log(np.exp(row[target] - row.max()) / np.exp(row - row.max()).sum())
    scored = len(text[: spans[count - 1][1]].encode()) - len(text[: spans[1][0]].encode())
    assert found == pytest.approx(nats / math.log(2) / scored, rel=1e-4)


def test_log_probabilities_of_a_uniform_model() -> None:
    np.testing.assert_allclose(log_probabilities(np.zeros((3, V), np.float32), [0, 5, 9]), -math.log(V))


def test_tokens_are_of_the_text_where_it_is_long_enough(engine: Engine) -> None:
    ids, spans = engine.tokenizer.encode_with_spans(STORY)
    text = Text(STORY, ids, spans)
    found, origin = tokens_to_read(engine, text, 30, seed=4)
    assert bytes(found).decode() in STORY
    assert origin == "text"
    assert tokens_to_read(engine, text, 30, seed=4) == (found, origin)
    assert tokens_to_read(engine, Text("ab", [1, 2], []), 30, seed=4)[1] == "random ids"


def test_every_point_reads_the_same_tokens_in_every_round(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int]] = []
    step = Sequence.step

    def spy(self: Sequence, token: int) -> Any:
        seen.append((float(self.thresholds.router_top_p[0]), token))
        return step(self, token)

    monkeypatch.setattr(Sequence, "step", spy)
    walked = [resolve(engine.manifest, Dial(router_top_p=p)) for p in (0.2, 0.9)]
    timed = time_points(engine, walked, [1, 2, 3], [4, 5, 6], repeats=4, seed=0)
    assert [len(one.rounds) for one in timed] == [4, 4]
    assert [one.tally.tokens for one in timed] == [3, 3]
    rounds = [seen[i : i + 3] for i in range(0, len(seen), 3)]
    assert len(rounds) == 2 * (1 + 4)
    assert all([token for _, token in one] == [4, 5, 6] and len({p for p, _ in one}) == 1 for one in rounds)
    order = [one[0][0] for one in rounds[2:]]
    assert all(set(order[i : i + 2]) == {order[0], order[1]} for i in range(0, 8, 2)), "each round has each point"


def test_the_spread_is_how_far_rounds_lie_apart() -> None:
    timed = Timed(rounds=[[1.0, 1.0, 9.0], [1.1, 1.1, 1.1], [1.2, 1.2, 1.2]])
    assert timed.spread == pytest.approx(0.2 / 1.1)
    assert timed.milliseconds.median == pytest.approx(1100)


def test_a_model_without_choices_has_one_point(engine: Engine) -> None:
    layers = [layer.model_copy(update={"routing": "dense", "num_experts": 1, "depth_router": False, "exit": False})
              for layer in engine.manifest.model.layers]  # fmt: skip
    manifest = engine.manifest.model_copy(update={"model": engine.manifest.model.model_copy(update={"layers": layers})})
    manifest.thresholds.depth_threshold[:] = [0.0] * L
    manifest.thresholds.router_top_p[:] = [1.0] * L
    try:
        assert [point.name for point in points(manifest, Dial())] == ["all"]
    finally:
        manifest.thresholds.depth_threshold[:] = [0.0, 0.4, 0.0]
        manifest.thresholds.router_top_p[:] = [0.5] * L


def test_a_sweep_walks_the_heads_and_the_calibrated_curve_where_there_are(rich: Path) -> None:
    manifest = Manifest.read(rich)
    assert [point.name for point in points(manifest, Dial()) if point.name.startswith("heads")] == [
        "heads 4", "heads 3", "heads 2", "heads 1"
    ]  # fmt: skip
    assert not [point for point in points(manifest, Dial()) if point.name.startswith("compute")]
    calibrated = Manifest.model_validate(manifest.model_dump() | {"curve": CURVE})
    walked = points(calibrated, Dial())
    assert [one.name for one in walked if one.name.startswith("compute")] == [
        "compute 0.7",
        "compute 0.5",
        "compute 0.3",
    ]
    asked = points(calibrated, Dial(compute=0.5))
    assert asked[1].name == "default"
    assert asked[1].thresholds.as_lists() == resolve(calibrated, Dial(compute=0.5)).as_lists()
    without = manifest.model_copy(update={"dial": manifest.dial.model_copy(update={"head_top_p": []})})
    assert [one.name for one in points(without, Dial()) if one.name.startswith("head")] == [
        "head_top_p 1", "head_top_p 0.6", "head_top_p 0.4", "head_top_p 0.2", "head_top_p 0.1"
    ]  # fmt: skip


def test_a_bench_counts_the_heads_of_a_model_that_routes_them(rich_copy: Path, tmp_path: Path) -> None:
    command = ["bench", "--model", str(rich_copy), "--device", "cpu", "--threads", "1", *SHORT, "--sweep",
               "--text-tokens", "300", "--plot", str(tmp_path / "x.png")]  # fmt: skip
    people = CliRunner().invoke(group, command)
    assert people.exit_code == 0, people.stderr
    assert " heads, " in people.stdout
    assert people.stdout.splitlines()[6].split()[:4] == ["point", "experts", "heads", "layers"]
    content = json.loads(CliRunner().invoke(group, [*command, "--json"]).stdout)
    heads = [point["heads_per_token"] for point in content["sweep"] if point["name"].startswith("heads")]
    assert heads == sorted(heads, reverse=True)
    assert 1 <= heads[-1] < heads[0] == 4
    assert content["sweep"][0]["heads_per_token"] == 4


def test_the_measured_bandwidth_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.perf_counter()
    found = read_bandwidth(2**22, 1)
    assert 1e8 < found.bytes_per_second < 1e13
    assert found.buffer_bytes == 2**22
    # What was read cannot have taken less time than the whole measurement.
    assert found.bytes_per_second >= 2 * 2**24 / (time.perf_counter() - begin)


def test_the_tables_of_the_tiny_graph_are_as_the_tests_assume() -> None:
    assert TABLES["mass_before"].shape == (V, 4)
