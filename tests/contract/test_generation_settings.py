"""`generation.json` comes back as it was written, and a wrong one is refused by field."""

import json
from typing import Any

import pytest
from support.cases import each

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.generation_settings import GenerationSettings, sampling_of, template_file

FULL = GenerationSettings(
    eos_ids=(2, 7),
    bos_id=1,
    add_bos=True,
    dialect="huggingface",
    special_tokens={"bos": "<s>", "eos": "</s>"},
    sampling={"temperature": 0.6, "top_k": 20},
    templates={"tool_use": "chat_template.tool_use.jinja"},
    stop=("Human:",),
    tools="hermes",
)


def test_the_file_comes_back_as_it_was_written() -> None:
    assert GenerationSettings.from_json(FULL.to_json(), "generation.json") == FULL


def test_only_the_ends_are_needed() -> None:
    settings = GenerationSettings.from_json('{"eos_ids": [5]}', "generation.json")
    assert settings == GenerationSettings(eos_ids=(5,))
    assert settings.dialect == "own"


@each(
    ("change", "message"),
    [
        ({"eos_ids": []}, "eos_ids"),
        ({"eos_ids": [1, 1]}, "eos_ids"),
        ({"eos_ids": [-1]}, "eos_ids"),
        ({"eos_ids": [True]}, "eos_ids"),
        ({"eos_ids": [[1]]}, "eos_ids"),
        ({"eos_ids": 1}, "eos_ids"),
        ({"bos_id": "1"}, "bos_id"),
        ({"bos_id": None, "add_bos": True}, "add_bos"),
        ({"add_bos": 1}, "add_bos"),
        ({"dialect": "gguf"}, "dialect"),
        ({"special_tokens": {"end": "x"}}, "special_tokens"),
        ({"special_tokens": {"eos": ""}}, r"special_tokens\.eos"),
        ({"special_tokens": {"eos": "\ud800"}}, r"special_tokens\.eos"),
        ({"special_tokens": []}, "special_tokens"),
        ({"sampling": {"temperature": -1}}, r"sampling\.temperature"),
        ({"sampling": {"temperature": "1"}}, r"sampling\.temperature"),
        ({"sampling": {"top_k": 1.5}}, r"sampling\.top_k"),
        ({"sampling": {"top_p": 0}}, r"sampling\.top_p"),
        ({"sampling": {"speed": 1}}, "sampling"),
        ({"templates": {"a": "../../etc/passwd"}}, r"templates\.a"),
        ({"templates": {"../a": "chat_template.../a.jinja"}}, "name of a chat template"),
        ({"templates": {"default": "chat_template.default.jinja"}}, "name of a chat template"),
        ({"stop": [""]}, "stop"),
        ({"stop": [{}]}, "stop"),
        ({"tools": "xml"}, "tools"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(change: dict[str, Any], message: str) -> None:
    content = {**json.loads(FULL.to_json()), **change}
    with pytest.raises(UserError, match=rf"^generation\.json: found .*{message}.*expected .*import the model again"):
        GenerationSettings.from_json(json.dumps(content), "generation.json")


@each("text", ["", "{", "[" * 100_000, "[]", "{}", "null"])
def test_what_is_no_such_file_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^generation\.json.*import the model again"):
        GenerationSettings.from_json(text, "generation.json")


def test_named_templates_have_files_of_their_own() -> None:
    assert template_file("tool_use") == "chat_template.tool_use.jinja"


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"temperature": 0.7, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}, {"temperature": 0.7}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"top_k": -1, "temperature": None, "min_p": float("nan")}, {}),
    ],
)  # fmt: skip
def test_defaults_of_sampling_are_those_of_transformers_file(config: dict[str, Any], sampling: dict[str, Any]) -> None:
    assert sampling_of(config) == sampling
