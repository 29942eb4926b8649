"""`adaptive generate --beams` and `--best-of`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from adaptive_lm.runtime import Engine, Params
from adaptive_lm.runtime.execution.batch import Batch
from adaptive_lm.runtime.generation.loop import Loop
from adaptive_lm.serve.cli import group

SHORT = ["--max-new-tokens", "12"]


@pytest.fixture
def generate(model: Path) -> Callable[..., Result]:
    def run(*args: str, input: str | None = None) -> Result:
        options = ["--model", str(model), "--device", "cpu", "--threads", "1"]
        return CliRunner().invoke(group, ["generate", *args, *options], input=input)

    return run


def test_beams_print_the_best_text_and_what_all_of_them_cost(generate: Callable[..., Result], engine: Engine) -> None:
    result = generate("hello", "--beams", "3", *SHORT)
    assert result.exit_code == 0, result.stderr
    search = engine.search("hello", Params(max_new_tokens=12), beams=3)
    tokens = list(search)
    assert result.stdout.rstrip("\n") == "".join(token.text for token in tokens).rstrip("\n")
    best = search.found.best
    assert f"best of {len(search.found.hypotheses)} texts · score {best.score:.3f}" in result.stderr
    assert (
        f"{search.found.effort.tokens} tokens computed, {search.found.flops_ratio:.2f} times the FLOPs" in result.stderr
    )
    assert "seed" not in result.stderr
    assert generate("hello", "--beams", "3", *SHORT, "--usage", "none").stderr == ""
    assert "exit" in generate("hello", "--beams", "3", *SHORT, "--usage", "tokens").stderr


def test_the_object_of_beams_has_the_score_the_others_and_the_whole_cost(
    generate: Callable[..., Result], engine: Engine
) -> None:
    options = ["--beam-margin", "3", "--length-penalty", "1", "--json"]
    content = json.loads(generate("hello", "--beams", "4", *SHORT, *options).stdout)
    search = engine.search("hello", Params(max_new_tokens=12), beams=4, beam_margin=3, length_penalty=1)
    list(search)
    found = search.found
    assert content["text"] == found.best.text
    assert [token["id"] for token in content["tokens"]] == [token.id for token in found.best.tokens]
    assert content["score"] == pytest.approx(found.best.score, abs=1e-6)
    assert content["logprob"] == pytest.approx(found.best.logprob, abs=1e-6)
    assert [one["text"] for one in content["alternatives"]] == [one.text for one in found.hypotheses[1:]]
    assert content["alternatives"][0].keys() == {"text", "score", "logprob", "new_tokens", "finish_reason", "seed"}
    cost = content["search"]
    assert cost["computed_tokens"] == found.effort.tokens > 12
    assert cost["executed_flops"] == pytest.approx(found.effort.executed_flops)
    dense = sum(token["dense_flops"] for token in content["tokens"])
    assert content["usage"]["executed_flops_share"] == pytest.approx(cost["executed_flops"] / dense, abs=1e-4)
    assert content["usage"]["seed"] is None
    assert content["usage"]["finish_reason"] == found.best.finish_reason


def test_best_of_prints_the_most_probable_text(generate: Callable[..., Result], engine: Engine) -> None:
    options = ["--best-of", "3", "--seed", "11", *SHORT]
    content = json.loads(generate("hello", *options, "--json").stdout)
    assert len(content["alternatives"]) == 2
    assert sorted([content["usage"]["seed"], *(one["seed"] for one in content["alternatives"])]) == [11, 12, 13]
    assert content["score"] == pytest.approx(content["logprob"] / len(content["tokens"]), abs=1e-5)
    assert content["score"] >= max(one["score"] for one in content["alternatives"])
    seed = content["usage"]["seed"]
    assert generate("hello", *options).stdout == generate("hello", *SHORT, "--seed", str(seed)).stdout
    assert f"seed {seed}" in generate("hello", *options).stderr


@pytest.mark.parametrize("search", [("--beams", "2"), ("--best-of", "2", "--seed", "4")])
def test_every_prompt_of_a_file_gets_what_a_single_run_gives(
    generate: Callable[..., Result], tmp_path: Path, search: tuple[str, ...]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("hello\nthe moon\n\nriver\n")
    result = generate("--prompts", str(file), *search, *SHORT, "--json")
    assert result.exit_code == 1, "the empty line has no prompt"
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert objects[2]["line"] == 3
    assert "Error: line 3: the prompt is empty" in result.stderr
    for prompt, content in zip(("hello", "the moon", "river"), [*objects[:2], objects[3]], strict=True):
        assert without_times(content) == without_times(json.loads(generate(prompt, *search, *SHORT, "--json").stdout))
    texts = generate("--prompts", str(file), *search, *SHORT)
    assert texts.stdout.startswith("[1] hello\n")
    assert texts.stderr.count("times the FLOPs of this text alone") == 3


def without_times(content: dict[str, Any]) -> dict[str, Any]:
    for name in ("tokens_per_second", "milliseconds_per_token", "prompt_seconds", "cached_tokens"):
        del content["usage"][name]
    for one in (content["search"], *content["tokens"]):
        del one["seconds"]
    return content


def test_settings_of_a_line_that_make_no_sense_fail_alone(generate: Callable[..., Result]) -> None:
    lines = '{"prompt": "hello"}\n{"prompt": "moon", "top_k": 3}\n{"prompt": "river", "max_new_tokens": 3}\n'
    result = generate("--prompts", "-", "--beams", "2", *SHORT, "--json", input=lines)
    assert result.exit_code == 1
    assert "Error: line 2: found top_k 3 with a beam search" in result.stderr
    contents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [len(one.get("tokens", [])) for one in contents] == [12, 0, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beams", "2", "--best-of", "2"], "found both --beams and --best-of, expected one of them"),
        (["--beams", "0"], "found --beams 0, expected a whole number, at least 1"),
        (["--best-of", "0"], "found --best-of 0, expected a whole number, at least 1"),
        (["--beams", "2", "--beam-margin", "-1"], "found --beam-margin -1.0, expected a number from 0"),
        (["--beams", "2", "--length-penalty", "11"], "found --length-penalty 11.0, expected a number from 0 to 10"),
        (["--beam-margin", "1"], "found --beam-margin without --beams, expected both; add --beams 4"),
        (["--best-of", "2", "--length-penalty", "1"], "found --length-penalty without --beams"),
        (["--beams", "2", "--speculate", "ngram"], "found --speculate ngram with a beam search"),
        (["--beams", "2", "--top-k", "5"], "found --top-k 5 with a beam search"),
        (["--beams", "2", "--temperature", "0.8"], "found --temperature 0.8 with a beam search"),
        (["--beams", "2", "--regex", "a+"], "found --beams and a constraint on the text, expected one of them"),
        (["--beams", "2", "--frequency-penalty", "1"], "found --frequency-penalty 1.0 with a beam search"),
        (["--best-of", "2", "--temperature", "0"], "found --temperature 0 with best-of 2"),
    ],
)
def test_options_without_a_meaning_are_refused(
    generate: Callable[..., Result], options: list[str], message: str
) -> None:
    result = generate("hello", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_batch_of_prompts_makes_no_sense_with_a_search(generate: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("hello\n")
    for search in ("--beams", "--best-of"):
        result = generate("--prompts", str(file), search, "2", "--batch", "4")
        assert result.exit_code == 2
        assert f"found --batch with {search}, which takes one prompt after another" in result.stderr


def test_beams_accept_what_changes_nothing(generate: Callable[..., Result]) -> None:
    plain = generate("hello", "--beams", "1", *SHORT, "--usage", "none")
    same = generate("hello", "--beams", "1", *SHORT, "--usage", "none", "--temperature", "0", "--speculate", "off")
    greedy = generate("hello", "--temperature", "0", *SHORT, "--usage", "none")
    assert plain.stdout == same.stdout == greedy.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_prints_the_best_text_so_far(
    generate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    interrupt_after(monkeypatch, 5)
    result = generate("hello", "--beams", "1", "--max-new-tokens", "30", *(["--json"] if as_json else []))
    assert result.exit_code == 130
    if as_json:
        content = json.loads(result.stdout)
        assert len(content["tokens"]) == 5
        assert content["usage"]["finish_reason"] == "interrupted"
    else:
        assert "interrupted" in result.stderr


def test_ctrl_c_during_a_best_of_prints_nothing(
    generate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Loop.step
    steps: list[int] = []

    def interrupted(self: Loop) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Loop, "step", interrupted)
    result = generate("hello", "--best-of", "2", "--max-new-tokens", "30")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "\n", "")


def interrupt_after(monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    run = Batch.run
    calls: list[int] = []

    def interrupted(self: Batch, work: Any) -> Any:
        calls.append(1)
        if len(calls) > passes:
            raise KeyboardInterrupt
        return run(self, work)

    monkeypatch.setattr(Batch, "run", interrupted)


def test_ctrl_c_among_many_prompts_prints_those_that_are_done(
    generate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 9)
    result = generate("--prompts", "-", "--beams", "2", "--max-new-tokens", "6", input="hello\nmoon\nriver\n")
    assert result.exit_code == 130
    assert "[1] hello" in result.stdout
    assert "[2]" not in result.stdout
    assert "interrupted: 1 of 3 prompts" in result.stderr
