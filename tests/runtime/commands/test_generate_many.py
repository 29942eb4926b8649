"""`adaptive generate --prompts`: each prompt gets what a run of its own gives; a bad one fails alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.graphs.tiny_graph import CONTEXT

from adaptive_lm.runtime import Engine, Params
from adaptive_lm.runtime.commands.prompt_file import read_prompts
from adaptive_lm.runtime.execution.memory import budget as memory
from adaptive_lm.runtime.generation.loop import Loop
from adaptive_lm.serve.cli import group

PROMPTS = ["hello", "m", "the moon turns over a stone", "x" * 60, "river", "a b c", "night", "y" * 33]


@pytest.fixture
def generate(model: Path) -> Callable[..., Result]:
    def run(*args: str, input: str | bytes | None = None) -> Result:
        options = ["--model", str(model), "--device", "cpu", "--threads", "1"]
        return CliRunner().invoke(group, ["generate", *args, *options], input=input)

    return run


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: str | bytes) -> str:
        path = tmp_path / "prompts.txt"
        path.write_bytes(b"".join((one if isinstance(one, bytes) else one.encode()) + b"\n" for one in lines))
        return str(path)

    return write


def without_times(content: dict[str, Any]) -> dict[str, Any]:
    """Return an object of `generate --json` without what differs between two runs."""
    usage = content["usage"]
    for name in ("tokens_per_second", "milliseconds_per_token", "prompt_seconds", "cached_tokens"):
        del usage[name]
    for token in content["tokens"]:
        del token["seconds"]
    return content


@pytest.mark.parametrize("batch", ["1", "3", "8", "20"])
def test_every_object_is_the_one_that_a_single_run_prints(
    generate: Callable[..., Result], file: Callable[..., str], batch: str
) -> None:
    options = ["--seed", "7", "--max-new-tokens", "15", "--json"]
    result = generate("--prompts", file(*PROMPTS), "--batch", batch, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(objects) == len(PROMPTS)
    for prompt, content in zip(PROMPTS, objects, strict=True):
        assert without_times(content) == without_times(json.loads(generate(prompt, *options).stdout))


def test_without_json_each_text_follows_its_prompt_and_the_speed_comes_last(
    generate: Callable[..., Result], file: Callable[..., str]
) -> None:
    options = ["--temperature", "0", "--max-new-tokens", "9"]
    result = generate("--prompts", file("hello", "z" * 80), *options)
    assert result.exit_code == 0
    first, second = result.stdout.split("[2] ")
    assert first.startswith("[1] hello\n")
    assert second.startswith("z" * 67 + "...\n")
    assert generate("hello", *options).stdout.rstrip("\n") in first
    assert "2 of 2 prompts · 18 new tokens in " in result.stderr
    assert "tokens/s" in result.stderr
    assert generate("--prompts", file("hello"), *options, "--usage", "none").stderr == ""
    assert "exit" in generate("--prompts", file("hello"), *options, "--usage", "tokens").stderr


def test_json_lines_have_settings_of_their_own(generate: Callable[..., Result], file: Callable[..., str]) -> None:
    lines = [
        {"prompt": "hello", "max_new_tokens": 3, "seed": 5},
        {"prompt": "two\nlines", "temperature": 0},
        {"prompt": "moon", "stop": ["a", "e"], "router_top_p": 0.9},
    ]
    result = generate("--prompts", file(*map(json.dumps, lines)), "--seed", "1", "--max-new-tokens", "8", "--json")
    assert result.exit_code == 0, result.stderr
    first, second, third = (json.loads(line) for line in result.stdout.splitlines())
    alone = generate("hello", "--max-new-tokens", "3", "--seed", "5", "--json")
    assert without_times(first) == without_times(json.loads(alone.stdout))
    alone = generate("two\nlines", "--max-new-tokens", "8", "--seed", "1", "--temperature", "0", "--json")
    assert without_times(second) == without_times(json.loads(alone.stdout))
    assert set(third["thresholds"]["router_top_p"]) == {0.9}


def test_a_bad_prompt_fails_alone_and_says_which_line(
    generate: Callable[..., Result], file: Callable[..., str]
) -> None:
    lines = ["hello", "", "x" * (CONTEXT + 1), b"caf\xe9 au lait", "moon"]
    options = ["--max-new-tokens", "5", "--seed", "1"]
    result = generate("--prompts", file(*lines), *options, "--json")
    assert result.exit_code == 1
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert [content.get("line") for content in objects] == [None, 2, 3, 4, None]
    assert "the prompt is empty" in objects[1]["error"]
    assert f"context is {CONTEXT} tokens" in objects[2]["error"]
    assert "line 4" in objects[3]["error"]
    assert len(objects[4]["tokens"]) == 5
    for line in (2, 3, 4):
        assert f"Error: line {line}: " in result.stderr
    plain = generate("--prompts", file(*lines), *options)
    assert plain.exit_code == 1
    assert "[5] moon\n" in plain.stdout
    assert "5 of 5 prompts, 3 failed · 10 new tokens" in plain.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"}', "expected a JSON object with the text `prompt`"),
        ("no JSON", "found 'no JSON', expected a JSON object"),
        ('{"prompt": "a", "sed": 1}', "found the setting 'sed', expected prompt or one of"),
        ('{"prompt": "a", "seed": -1}', "found seed -1, expected a whole number, from 0"),
        ('{"prompt": "a", "experts": "two"}', "expected numbers"),
        ('{"prompt": "a", "stop": [1]}', 'found the stop string 1, expected a text, such as "1"'),
        ('{"prompt": "a", "stop": 5}', 'found the stop string 5, expected a text, such as "5"'),
        ('{"prompt": "a", "logit_bias": {"-1": 2}}', "found '-1' in logit_bias, expected a token id"),
        ('{"prompt": "a", "logit_bias": {"%s": 1}}' % ("9" * 5000), f"found '{'9' * 23} in logit_bias, expected"),
        ('{"prompt": ""}', "the prompt is empty"),
    ],
)
def test_a_wrong_json_line_is_named(
    generate: Callable[..., Result], file: Callable[..., str], line: str, message: str
) -> None:
    good = '{"prompt": "hello"}'
    result = generate("--prompts", file(good, line, good), "--max-new-tokens", "2", "--temperature", "0", "--json")
    assert result.exit_code == 1
    objects = [json.loads(text) for text in result.stdout.splitlines()]
    assert objects[1].keys() == {"line", "error"}
    assert message in objects[1]["error"]
    assert message in result.stderr
    assert [len(objects[index]["tokens"]) for index in (0, 2)] == [2, 2]


def test_prompts_come_from_stdin_too(generate: Callable[..., Result]) -> None:
    options = ["--prompts", "-", "--max-new-tokens", "2", "--seed", "1"]
    result = generate(*options, input="hello\r\nmoon\r\n")
    assert result.exit_code == 0
    assert "[1] hello\n" in result.stdout
    assert "[2] moon\n" in result.stdout
    assert "found no line in stdin" in generate(*options, input="").stderr


def test_what_excludes_each_other_is_refused(generate: Callable[..., Result], file: Callable[..., str]) -> None:
    for arguments, message in (
        (["hello", "--prompts", file("a")], "found both PROMPT and --prompts"),
        ([], "found neither PROMPT nor --prompts"),
        (["hello", "--batch", "2"], "found --batch without --prompts"),
        (["--prompts", file("a"), "--batch", "0"], "found --batch 0, expected at least 1"),
    ):
        result = generate(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
    missing = generate("--prompts", "no-such-file")
    assert missing.exit_code == 1
    assert "no-such-file" in missing.stderr


def test_an_interruption_prints_what_is_done(
    generate: Callable[..., Result], file: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Loop.step
    steps: list[int] = []

    def interrupted(self: Loop) -> Any:
        steps.append(1)
        if len(steps) == 12:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Loop, "step", interrupted)
    lines = [json.dumps({"prompt": text, "max_new_tokens": count}) for text, count in (("a", 40), ("b", 3), ("c", 2))]
    result = generate("--prompts", file(*lines), "--json")
    assert result.exit_code == 130
    assert [len(json.loads(line)["tokens"]) for line in result.stdout.splitlines()] == [3, 2]
    assert "interrupted: 2 of 3 prompts" in result.stderr


def test_a_batch_that_does_not_fit_memory_is_refused_before_it_starts(
    generate: Callable[..., Result], file: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "UNASKED_BYTES", 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    result = generate("--prompts", file(*PROMPTS))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "found 8 sequences of " in result.stderr
    assert "fewer at a time (--batch, --beams)" in result.stderr


def test_texts_come_as_soon_as_the_order_allows(engine: Engine) -> None:
    params = [Params(seed=1, max_new_tokens=count) for count in (3, 40, 2)]
    texts = engine.generate_many(["a", "b", "c"], params, slots=3)
    first = next(texts)
    assert (first.index, len(first.tokens)) == (0, 3)
    second = next(texts)
    assert (second.index, len(second.tokens)) == (1, 40)
    assert next(texts).text == "".join(token.text for token in engine.generate("c", params[2]))
    assert list(texts) == []


def test_a_later_call_ends_the_texts_of_an_earlier_one(engine: Engine) -> None:
    texts = engine.generate_many(["a", "b"], [Params(max_new_tokens=1), Params(max_new_tokens=40)])
    next(texts)
    single = engine.generate("c", Params(max_new_tokens=2))
    assert len(list(single)) == 2
    with pytest.raises(RuntimeError, match="one at a time"):
        next(texts)


def test_settings_of_another_number_of_texts_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="found settings of 1 texts for 2 prompts"):
        engine.generate_many(["a", "b"], [Params()])
    assert list(engine.generate_many([])) == []


def test_a_text_that_begins_with_a_brace_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "code.txt").write_text('{ int x; }\n{"prompt": "a"}\n')
    assert [one.text for one in read_prompts(str(tmp_path / "code.txt"))] == ["{ int x; }", '{"prompt": "a"}']
