"""`adaptive generate` with a model of another family: its ends, its defaults of sampling, its special tokens, tools."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.graphs.tiny_graph import EOS
from support.serving.scripted import CALL, TEMPLATE

from adaptive_lm.contract.errors import UserError
from adaptive_lm.runtime import Engine, load
from adaptive_lm.runtime.format.manifest import Manifest
from adaptive_lm.runtime.generation.generation import Generation
from adaptive_lm.serve.cli import group

FOREIGN = {"dialect": "huggingface", "sampling": {"temperature": 0.0, "top_k": 3}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def generate(changed: Callable[..., Path]) -> Callable[..., Result]:
    folder = changed(chat_template=TEMPLATE, generation=FOREIGN)

    def run(*args: str) -> Result:
        return CliRunner().invoke(group, ["generate", "?", "--model", str(folder), "--device", "cpu", *args])

    return run


def text_of(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["text"]


def test_the_models_defaults_of_sampling_hold_until_an_option_is_given(generate: Callable[..., Result]) -> None:
    greedy = text_of(generate("--raw", "--json", "--temperature", "0"))
    assert text_of(generate("--raw", "--json")) == greedy, "the model's temperature is 0"
    assert text_of(generate("--raw", "--json", "--temperature", "0.8", "--seed", "1")) != greedy
    assert generate("--raw", "--beams", "2").exit_code == 0, "a search does not take them"


def test_the_engine_gives_the_models_defaults_to_who_gives_none(changed: Callable[..., Path]) -> None:
    engine = load(changed(generation=FOREIGN), device="cpu", threads=1)
    assert (engine.params().temperature, engine.params().top_k) == (0.0, 3)
    assert engine.params(temperature=0.5).temperature == 0.5
    assert engine.request("a").params == engine.params()


def test_any_of_the_ends_ends_a_text(changed: Callable[..., Path], engine: Engine) -> None:
    greedy = engine.params(temperature=0, max_new_tokens=20)
    ids = [token.id for token in engine.generate("hello", greedy)]
    model = engine.manifest.model.model_dump() | {"eos_ids": [EOS, ids[4]]}
    other = load(changed(model=model), device="cpu", threads=1)
    generation = other.generate("hello", greedy)
    cut = [token.id for token in generation]
    assert cut == ids[: ids.index(ids[4]) + 1]
    assert generation.finish_reason == "eos"
    assert other.manifest.model.ends == [EOS, ids[4]]


def test_a_stop_text_of_the_model_ends_a_text(changed: Callable[..., Path], engine: Engine) -> None:
    greedy = engine.params(temperature=0, max_new_tokens=20)
    text = "".join(token.text for token in engine.generate("hello", greedy))
    other = load(changed(generation={"stop": [text[5:7]]}), device="cpu", threads=1)
    generation = other.generate("hello", greedy)
    assert "".join(token.text for token in generation) == text[: text.index(text[5:7])]
    assert generation.finish_reason == "stop"


def test_a_raw_prompt_begins_with_the_token_that_begins_a_text(changed: Callable[..., Path]) -> None:
    engine = load(changed(generation={"bos_id": EOS, "add_bos": True}), device="cpu", threads=1)
    assert engine.request("ab").ids == [EOS, *b"ab"]
    assert load(changed(generation={"bos_id": EOS}), device="cpu").request("ab").ids == [*b"ab"]


@pytest.mark.parametrize("show", ["yes", 1, ("a",), (True,), None])
def test_special_tokens_to_show_are_all_none_or_some(engine: Engine, show: Any) -> None:
    with pytest.raises(UserError, match=r"found show_special .*, expected true, false or token ids"):
        engine.params(show_special=show)


def test_a_manifest_of_before_has_one_end_and_no_defaults(engine: Engine) -> None:
    assert engine.manifest.model.ends == [EOS]
    assert engine.manifest.generation.dialect == "own"
    assert engine.manifest.generation.sampling == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation": {"sampling": {"temperature": -1}}}, r"sampling\.temperature"),
        ({"generation": {"sampling": {"speed": 1}}}, "sampling"),
        ({"generation": {"add_bos": True}}, "add_bos"),
        ({"generation": {"bos_id": 10**6}}, "bos_id 1000000 is outside"),
        ({"generation": {"dialect": "x"}}, "dialect"),
        ({"generation": {"templates": {"../x": "a"}}}, "name of a chat template"),
        ({"eos_ids": [1]}, "eos_id 256 is not among"),
        ({"eos_ids": [EOS, 10**6]}, "eos_id 1000000 is outside"),
    ],
)
def test_a_wrong_section_is_refused_by_name(
    changed: Callable[..., Path], engine: Engine, changes: dict[str, Any], message: str
) -> None:
    if "eos_ids" in changes:
        changes = {"model": engine.manifest.model.model_dump() | changes}
    with pytest.raises(UserError, match=rf"is damaged: .*{message}.*export the model again"):
        Manifest.read(changed(**changes), verify=False)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every generation say a text and a call."""
    plain = Generation.__next__
    pieces = ["I look.\n", CALL[:7], CALL[7:30], CALL[30:]]

    def say(generation: Generation) -> Any:
        token = plain(generation)
        place = generation.request.new_tokens - 1
        return replace(token, text=pieces[place] if place < len(pieces) else "")

    monkeypatch.setattr(Generation, "__next__", say)


@pytest.mark.usefixtures("scripted")
def test_the_terminal_shows_text_and_calls(generate: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS))
    result = generate("--tools", str(file), "--max-new-tokens", "9")
    assert result.stdout == 'I look.\nweather({"city": "Paris"})\n'
    content = json.loads(generate("--tools", str(file), "--json", "--max-new-tokens", "9").stdout)
    assert content["text"] == "I look."
    assert [call["function"] for call in content["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Paris"}'}
    ]


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        ("[", [], "is no JSON"),
        ("{}", [], "is no list of functions"),
        ('[{"name": 1}]', [], "is no list of functions"),
        ("[]", [], "found no function"),
        (json.dumps(TOOLS), ["--raw"], "found --tools and --raw"),
        (json.dumps(TOOLS), ["--beams", "2"], "found --tools and --beams"),
        (json.dumps(TOOLS), ["--regex", "a"], "found --tools and a constraint"),
    ],
)
def test_tools_that_cannot_be_are_refused(
    generate: Callable[..., Result], tmp_path: Path, content: str, args: list[str], message: str
) -> None:
    file = tmp_path / "tools.json"
    file.write_text(content)
    result = generate("--tools", str(file), *args)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_without_a_template_for_tools_says_so(changed: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    folder = changed(chat_template="{{ messages[0].content }}")
    command = ["generate", "a", "--model", str(folder), "--tools", str(tmp_path / "tools.json")]
    result = CliRunner().invoke(group, command)
    assert result.exit_code == 1
    assert "found --tools, this model has no chat template that takes tools" in result.stderr


def test_a_template_is_named_and_an_unknown_one_answered_with_those_there_are(changed: Callable[..., Path]) -> None:
    folder = changed(chat_template="m", generation={**FOREIGN, "templates": {"short": "{{ messages[0].content }}"}})
    command = ["generate", "abc", "--model", str(folder), "--max-new-tokens", "1", "--json"]
    prompts = {}
    for args in ([], ["--template", "short"]):
        result = CliRunner().invoke(group, [*command, *args])
        prompts[len(args)] = json.loads(result.stdout)["usage"]["prompt_tokens"]
    assert prompts == {0: 1, 2: 3}
    result = CliRunner().invoke(group, [*command, "--template", "x"])
    assert result.exit_code == 1
    assert "found the chat template 'x', this model has default, short; name one of them" in result.stderr
