"""`adaptive eval`: the loss on texts, the distance from a reference, and points of the dial in one table."""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.graphs.rich_graph import CURVE, STORY, expected, sections
from support.graphs.tiny_graph import EOS, TOKENS, write_manifest

from adaptive_lm.runtime import Engine, load
from adaptive_lm.runtime.dial import Thresholds
from adaptive_lm.runtime.measuring.quality.divergence import Point, diverge
from adaptive_lm.runtime.measuring.quality.perplexity import Text, Window, score, windows
from adaptive_lm.serve.cli import group

TEXT = (STORY * 9)[:800]
EVERYTHING = (1.0, 0.0, 1.0, 1.0)


def run(folder: Path, *args: str) -> Result:
    command = ["eval", "--model", str(folder), "--device", "cpu", "--threads", "1", *args]
    return CliRunner().invoke(group, command)


def figures(folder: Path, *args: str) -> dict[str, Any]:
    result = run(folder, "--json", *args)
    assert result.exit_code == 0, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


@pytest.fixture
def dialled(rich_copy: Path) -> Path:
    """Copy the rich model with a curve, and put a text beside it."""
    (rich_copy.parent / "text.txt").write_text(TEXT)
    return write_manifest(rich_copy, **sections(), curve=CURVE)


def true_log_probs(ids: list[int], levels: tuple[float, float, float, float]) -> np.ndarray:
    """Return log-probabilities (T, V) by the formula of the graph, over all of the vocabulary."""
    logits = expected(ids, *levels).logits.astype(np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )


def rolled_loss(ids: list[int], window: int, stride: int, levels: tuple[float, float, float, float]) -> float:
    """Return the loss in nats per token, by the definition of the sliding window."""
    total, begin, scored = 0.0, 0, 0
    while scored < len(ids) - 1:
        end = min(begin + window, len(ids) - 1)
        rows = true_log_probs(ids[begin:end], levels)
        total -= sum(rows[place - begin, ids[place + 1]] for place in range(scored, end))
        scored, begin = end, begin + stride
    return total / (len(ids) - 1)


def test_every_token_but_the_first_is_scored_once_after_those_before_it_in_its_window(dialled: Path) -> None:
    content = figures(dialled, "--data", str(dialled.parent / "text.txt"), "--window", "128", "--stride", "48",
                      "--compute", "1")  # fmt: skip
    loss = rolled_loss(list(TEXT.encode()), 128, 48, EVERYTHING)
    assert content["tokens"] == 799
    assert content["loss"] == pytest.approx(loss, abs=1e-5)
    assert content["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert content["bits_per_byte"] == pytest.approx(loss / math.log(2), abs=1e-5)  # a token is a byte
    assert (content["settings"]["window"], content["settings"]["stride"]) == (128, 48)


def test_by_default_windows_have_the_context_and_overlap_by_half(dialled: Path) -> None:
    content = figures(dialled, "--data", str(dialled.parent / "text.txt"), "--compute", "1")
    assert (content["settings"]["window"], content["settings"]["stride"]) == (512, 256)
    assert content["loss"] == pytest.approx(rolled_loss(list(TEXT.encode()), 512, 256, EVERYTHING), abs=1e-5)


def test_a_text_shorter_than_a_window_is_read_at_once(dialled: Path) -> None:
    (dialled.parent / "short.txt").write_text(STORY[:30])
    content = figures(dialled, "--data", str(dialled.parent / "short.txt"), "--compute", "1")
    assert content["tokens"] == 29
    assert content["loss"] == pytest.approx(rolled_loss(list(STORY[:30].encode()), 512, 256, EVERYTHING), abs=1e-5)


def test_a_model_whose_prompts_begin_with_a_token_reads_it_in_each_window(dialled: Path) -> None:
    write_manifest(dialled, **sections(), curve=CURVE, generation={"bos_id": EOS, "add_bos": True})
    content = figures(dialled, "--data", str(dialled.parent / "text.txt"), "--window", "100", "--compute", "1",
                      "--stride", "60")  # fmt: skip
    ids = [EOS, *TEXT.encode()]
    total, begin, scored = 0.0, 0, 0
    while scored < len(ids) - 1:
        end = min(begin + 100, len(ids) - 1)
        window = ids[begin:end] if begin == 0 else [EOS, *ids[begin + 1 : end]]
        rows = true_log_probs(window, EVERYTHING)
        total -= sum(rows[place - begin, ids[place + 1]] for place in range(scored, end))
        scored, begin = end, begin + 60
    assert content["settings"]["bos"] is True
    assert content["tokens"] == 800, "the first token is scored too"
    assert content["loss"] == pytest.approx(total / 800, abs=1e-5)
    assert content["bits_per_byte"] == pytest.approx(total / 800 / math.log(2), abs=1e-5)


@pytest.mark.parametrize("bos", [None, 256])
def test_windows_of_every_length_and_stride_score_each_token_once(bos: int | None) -> None:
    text = Text("abcdefghijklmnopqrstuvw", list(range(23)), [(place, place + 1) for place in range(23)])
    for length in (2, 3, 5, 8, 30):
        for stride in (*range(1, length + 1), None):
            for count in (1, 5, 22, 23, 100):
                cut = windows(text, count, length, stride, bos)
                wanted = text.ids[bos is None :][:count]
                assert [token for one in cut for token in one.targets] == wanted
                assert sum(one.bytes for one in cut) == len(wanted)
                for one in cut:
                    assert len(one.targets) <= len(one.ids) <= length
                    assert [*one.ids, one.targets[-1]][-len(one.targets) :] == one.targets
                    assert bos is None or one.ids[0] == bos


def test_passes_that_bound_the_memory_of_logits_change_no_figure(
    rich_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list(TEXT.encode())
    cut = windows(Text(TEXT, ids, [(i, i + 1) for i in range(len(ids))]), 700, 200, 80)
    point = Thresholds.of(rich_engine.manifest.thresholds)
    whole = score(rich_engine, point, cut)
    monkeypatch.setattr("adaptive_lm.runtime.measuring.quality.perplexity.LOGITS_BYTES", 4 * 260 * 7)
    monkeypatch.setattr("adaptive_lm.runtime.measuring.quality.perplexity.PASS_TOKENS", 33)
    parts = score(rich_engine, point, cut)
    assert len(parts.choices) > len(whole.choices)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-6)
    assert asdict(parts.tally) == pytest.approx(asdict(whole.tally), rel=1e-12)
    np.testing.assert_array_equal(np.concatenate(parts.choices), np.concatenate(whole.choices))


def test_kl_and_agreement_follow_their_definitions(rich_engine: Engine) -> None:
    ids = list(TEXT.encode()[:101])
    window = Window(ids[:-1], ids[1:], 100)
    full = Thresholds.everything(3)
    less = Thresholds(*(np.full(3, level, np.float32) for level in (0.3, 0.0, 1.0, 0.4)))
    found = diverge(Point(rich_engine, full), [Point(rich_engine, less), Point(rich_engine, full)], [window])
    p, q = (
        expected(ids[:-1], *levels).logits[:, :TOKENS].astype(np.float64) for levels in (EVERYTHING, (0.3, 0, 1, 0.4))
    )
    p, q = (one - np.log(np.exp(one).sum(1, keepdims=True)) for one in (p, q))
    assert found[0].kl == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-4)
    assert found[0].agreement == (p.argmax(1) == q.argmax(1)).mean()
    assert 0 < found[0].agreement < 1
    assert (found[1].kl, found[1].agreement) == (0, 1)
    assert found[0].score.loss == pytest.approx(score(rich_engine, less, [window]).loss, abs=1e-9)


def test_more_points_than_read_at_a_time_get_the_same_figures(
    rich_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list(TEXT.encode()[:65])
    window = Window(ids[:-1], ids[1:], 64)
    points = [Point(rich_engine, Thresholds.everything(3)) for _ in range(3)]
    for point, level in zip(points, (0.2, 0.5, 0.9), strict=True):
        point.thresholds.router_top_p[:] = level
    reference = Point(rich_engine, Thresholds.everything(3))
    together = [(one.kl, one.agreement) for one in diverge(reference, points, [window])]
    monkeypatch.setattr("adaptive_lm.runtime.measuring.quality.divergence.AT_A_TIME", 2)
    assert [(one.kl, one.agreement) for one in diverge(reference, points, [window])] == together
    assert together[0][0] > together[2][0] > 0


def test_against_the_same_folder_at_another_dial(dialled: Path) -> None:
    content = figures(dialled, "--data", str(dialled.parent / "text.txt"), "--compute", "0.5", "--against-compute", "1")
    assert content["kl"] > 0
    assert 0 < content["agreement"] < 1
    assert content["against"]["name"] == "compute 1"
    same = figures(dialled, "--data", str(dialled.parent / "text.txt"), "--compute", "0.5", "--against-compute", "0.5")
    assert (same["kl"], same["agreement"]) == (0, 1)


def test_against_another_folder_of_the_same_vocabulary(dialled: Path, rich: Path) -> None:
    text = str(dialled.parent / "text.txt")
    content = figures(dialled, "--data", text, "--against", str(rich))
    assert content["against"]["model"] == str(rich)
    assert (content["kl"], content["agreement"]) == (0, 1), "both run as trained"
    assert "kl" not in figures(dialled, "--data", text)


def test_a_reference_with_another_vocabulary_is_refused(dialled: Path, model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    content = json.loads((other / "tokenizer.json").read_text())
    content["added_tokens"][0]["content"] = "<|end|>"
    (other / "tokenizer.json").write_text(json.dumps(content))
    write_manifest(other)
    result = run(dialled, "--against", str(other))
    assert result.exit_code == 1
    assert "has another vocabulary than" in result.stderr
    assert "leave --against out, and evaluate each model on the same --data FILE" in result.stderr


def test_several_points_and_texts_stand_in_one_object_and_one_plot(dialled: Path) -> None:
    place = dialled.parent
    (place / "other.txt").write_text((STORY * 2)[:200])
    data = ["--data", str(place / "text.txt"), "--data", str(place / "other.txt")]
    content = figures(dialled, *data, "--compute", "1,0.7", "--compute", "0.5", "--against-compute", "1",
                      "--repeats", "2", "--new-tokens", "8", "--plot", str(place / "points.svg"))  # fmt: skip
    assert [one["name"] for one in content["points"]] == ["compute 1", "compute 0.7", "compute 0.5"]
    for point in content["points"]:
        parts = point["data"]
        assert [one["file"] for one in parts] == [str(place / "text.txt"), str(place / "other.txt")]
        assert point["tokens"] == sum(one["tokens"] for one in parts) == 799 + 199
        mean = sum(one["loss"] * one["tokens"] for one in parts) / point["tokens"]
        assert point["loss"] == pytest.approx(mean, abs=1e-5)
        assert point["milliseconds_per_token"]["median"] > 0
    shares = [one["executed_share"] for one in content["points"]]
    assert shares == sorted(shares, reverse=True)
    assert content["points"][0]["kl"] == 0 < content["points"][2]["kl"]
    first = content["points"][0]
    assert all(content[name] == first[name] for name in ("loss", "perplexity", "bits_per_byte", "tokens", "kl"))
    assert (place / "points.svg").read_text().startswith("<?xml")


def test_people_read_a_table_and_what_was_scored(dialled: Path) -> None:
    result = run(dialled, "--compute", "1,0.5", "--against-compute", "1", "--tokens", "300")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        "point", "executed", "experts", "layers", "loss", "perplexity", "bits/byte", "KL", "agreement", "ms", "per",
        "token", "p5", "to", "p95",
    ]  # fmt: skip
    assert lines[1].startswith("compute 1")
    assert "0.0000" in lines[1]
    assert "100.00%" in lines[1]
    assert lines[3] == (
        "300 tokens of heldout.txt, in windows of 512 every 256; each scored once, after those before it in its window"
    )
    assert lines[4] == f"KL and agreement with {dialled} at compute 1"
    assert (dialled.parent / "model-eval.png").read_bytes()[:4] == b"\x89PNG"


def test_one_point_measures_no_time_and_draws_nothing_unless_asked(dialled: Path) -> None:
    assert figures(dialled, "--tokens", "50")["points"][0]["milliseconds_per_token"] is None
    assert not (dialled.parent / "model-eval.png").exists()
    assert figures(dialled, "--tokens", "50", "--repeats", "1", "--new-tokens", "4")["points"][0][
        "milliseconds_per_token"
    ]


def test_thresholds_set_points_of_a_model_without_a_curve(rich_copy: Path) -> None:
    content = figures(rich_copy, "--tokens", "100", "--router-top-p", "1,0.3", "--head-top-p", "1", "--repeats", "0")
    assert [one["name"] for one in content["points"]] == [
        "router_top_p 1, head_top_p 1",
        "router_top_p 0.3, head_top_p 1",
    ]
    assert content["points"][0]["dial"] == {"router_top_p": 1, "head_top_p": 1}
    assert content["points"][1]["loss"] > content["points"][0]["loss"]


def test_logits_that_are_not_numbers_are_an_error(rich_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptive_lm.runtime import UserError

    monkeypatch.setattr(
        "adaptive_lm.runtime.measuring.quality.perplexity.log_probabilities", lambda logits, targets: np.array([np.nan])
    )
    with pytest.raises(UserError, match=r"logits that are not finite numbers; export it again"):
        score(rich_engine, Thresholds.everything(3), [Window([1, 2], [2, 3], 2)])


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--tokens", "0"], 2, "found --tokens 0, expected at least 1"),
        (["--window", "1"], 2, "found --window 1, expected at least 2"),
        (["--window", "1000"], 2, "found --window 1000, the context is 512 tokens; give at most that"),
        (["--window", "8", "--stride", "9"], 2, "found --stride 9 for windows of 8 tokens, which would leave tokens"),
        (["--repeats", "-1"], 2, "found --repeats -1, expected at least 0"),
        (["--compute", "1,half"], 2, "found '1,half', expected numbers with commas between them, such as 1,0.7,0.5"),
        (["--compute", "2"], 2, "found --compute 2.0, expected above 0"),
        (["--against-compute", "2"], 2, "found --against-compute 2.0, expected above 0 and at most 1"),
        (["--experts", "1,2", "--heads", "1,2"], 2, "found several values of --experts and of --heads"),
        (["--compute", "1,0.5", "--experts", "2"], 2, "found both compute and experts"),
        (["--compute", "0.5"], 1, "this model is not calibrated; type: adaptive calibrate"),
        (["--against", "nowhere"], 1, "no exported model at nowhere"),
        (["--data", "/nowhere.txt"], 1, "cannot read /nowhere.txt"),
        (["--data", "a.jsonl"], 1, "a.jsonl holds records"),
        (["--plot", "x.bmp"], 2, "expected a name ending in .png"),
        (["--limit", "3"], 2, "--limit is for tasks; add --tasks NAME"),
        (["--apply-chat-template"], 2, "--apply-chat-template is for tasks; add --tasks NAME"),
        (["--tasks", ","], 2, "found no name"),
        (["--tasks", "x", "--limit", "0"], 2, "found --limit 0, expected above 0"),
        (["--tasks", "x", "--num-fewshot", "-1"], 2, "found --num-fewshot -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_setting_is_answered_with_one_line(rich_copy: Path, args: list[str], code: int, message: str) -> None:
    result = run(rich_copy, *args)
    assert message in result.stderr
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_without_a_text_it_says_how_to_give_one(rich_copy: Path) -> None:
    (rich_copy.parent / "heldout.txt").unlink()
    assert "expected what training held out; give a text with: --data FILE" in run(rich_copy).stderr


def test_an_engine_reads_beside_itself(rich: Path) -> None:
    """Two sequences of one engine, read in turn, do not disturb each other."""
    engine = load(rich, device="cpu", threads=1)
    ids = list(TEXT.encode()[:65])
    window = Window(ids[:-1], ids[1:], 64)
    full, less = Thresholds.everything(3), Thresholds.of(engine.manifest.thresholds)
    both = diverge(Point(engine, full), [Point(engine, less)], [window, window])
    alone = score(engine, less, [window, window])
    assert both[0].score.nats == alone.nats
