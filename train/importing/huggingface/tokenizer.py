"""The tokenizer of a folder: tokenizer.json, special tokens, ends, chat templates, defaults of sampling."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ....contract.file_names import CHAT_TEMPLATE, TOKENIZER
from ....contract.generation_settings import (
    DEFAULT_TEMPLATE,
    MAX_TEXT,
    GenerationSettings,
    sampling_of,
    template_file,
)
from ...data.tokenizers.ids import vocabulary_size
from ..errors import ForeignFileError, short
from .paths import LARGEST_TEMPLATE, LARGEST_TOKENIZER, model_files, read_json, read_small, repository_of
from .settings import Settings

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
GENERATION_CONFIG = "generation_config.json"
PROCESSOR_TEMPLATE = "chat_template.json"
MORE_TEMPLATES = "additional_chat_templates"
ROLES = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class ForeignTokenizer:
    """The tokenizer of a folder."""

    text: str
    """Content of tokenizer.json."""
    generation: GenerationSettings
    templates: Mapping[str, str]
    files: tuple[str, ...]
    """Names of the files that were read."""


def read_tokenizer(folder: Path, files: Mapping[str, Path], settings: Settings, vocab_size: int) -> ForeignTokenizer:
    """Read the tokenizer and what belongs to it.

    Args:
        folder: The folder of the model, for messages.
        files: Its files by name, links resolved.
        settings: The config.json.
        vocab_size: Rows of the embedding.

    Raises:
        ForeignFileError: There is no tokenizer.json, it is damaged, or it is that of another model.
    """
    if TOKENIZER not in files:
        raise _no_tokenizer(folder, files)
    text = read_small(files[TOKENIZER], LARGEST_TOKENIZER)
    tokenizer = parsed(text, folder / TOKENIZER)
    highest = vocabulary_size(tokenizer) - 1
    if highest >= vocab_size:
        raise ForeignFileError(
            f"{folder / TOKENIZER} has ids up to {highest}, the embedding of the model has {vocab_size} rows: it is "
            "the tokenizer of another model; download both again"
        )
    own = _settings(folder, files, TOKENIZER_CONFIG)
    tokens = special_tokens({**_settings(folder, files, SPECIAL_TOKENS), **own})
    generation = _settings(folder, files, GENERATION_CONFIG)
    ids = {role: tokenizer.token_to_id(token) for role, token in tokens.items()}
    bos = _id(generation.get("bos_token_id"), vocab_size)
    if bos is None:
        bos = ids.get("bos") if ids.get("bos") is not None else _id(settings.raw("bos_token_id"), vocab_size)
    ends = ends_of([generation.get("eos_token_id"), settings.raw("eos_token_id"), ids.get("eos")], vocab_size)
    if not ends:
        raise ForeignFileError(
            f"{folder} does not say which token ends a text: no eos_token_id in {GENERATION_CONFIG} and config.json, "
            f'no eos_token in {TOKENIZER_CONFIG}. Add it, as in "eos_token_id": 2, to config.json'
        )
    begins = own.get("add_bos_token")
    templates = read_templates(folder, files, own)
    return ForeignTokenizer(
        text,
        GenerationSettings(
            eos_ids=ends,
            bos_id=bos,
            add_bos=bos is not None and (begins if type(begins) is bool else begins_with(tokenizer, bos)),
            dialect="huggingface",
            special_tokens=tokens,  # type: ignore[arg-type]  # the roles are those of the contract
            sampling=sampling_of(generation),
        ),
        templates,
        tuple(
            name
            for name in (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, GENERATION_CONFIG, CHAT_TEMPLATE)
            if name in files
        ),
    )


def _no_tokenizer(folder: Path, files: Mapping[str, Path]) -> ForeignFileError:
    others = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if name in files]
    found = f"it has {others[0]}, which is of another format" if others else "it has no other one either"
    return ForeignFileError(
        f"{folder} has no {TOKENIZER}; {found}. Take the model's {TOKENIZER}, or write it with transformers: "
        "AutoTokenizer.from_pretrained(PATH).save_pretrained(PATH)"
    )


def parsed(text: str, place: Path) -> Tokenizer:
    """Make the tokenizer.

    Raises:
        ForeignFileError: The library cannot read it, or it is empty.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ForeignFileError(f"{place} is no tokenizer.json: {short(error)}; download it again") from error
    if not tokenizer.get_vocab_size():
        raise ForeignFileError(f"{place} has an empty vocabulary; download it again")
    return tokenizer


def _settings(folder: Path, files: Mapping[str, Path], name: str) -> dict[str, Any]:
    """Read a JSON file with an object; {} where there is no such file."""
    if name not in files:
        return {}
    content = read_json(files[name])
    if not isinstance(content, dict):
        raise ForeignFileError(f"{folder / name} holds no object; download the model again")
    return content


def special_tokens(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens by role, from `bos_token` and the like: texts, or objects with `content`."""
    tokens: dict[str, str] = {}
    for role in ROLES:
        value = values.get(f"{role}_token")
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) and 0 < len(value) <= MAX_TEXT:
            tokens[role] = value
    return tokens


def _id(value: Any, vocab_size: int) -> int | None:
    return value if type(value) is int and 0 <= value < vocab_size else None


def ends_of(sources: list[Any], vocab_size: int) -> tuple[int, ...]:
    """Return the ids that end a text: those of all sources, each once, in their order."""
    ends: dict[int, None] = {}
    for source in sources:
        for value in source if isinstance(source, list) else [source]:
            number = _id(value, vocab_size)
            if number is not None:
                ends[number] = None
    return tuple(ends)


def begins_with(tokenizer: Tokenizer, bos: int) -> bool:
    """Return whether the post-processor of the tokenizer puts `bos` before a text."""
    return (
        tokenizer.encode("a", add_special_tokens=True).ids[:1]
        == [bos]
        != tokenizer.encode("a", add_special_tokens=False).ids[:1]
    )


def read_templates(folder: Path, files: Mapping[str, Path], tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates by name; the files beside the tokenizer win over its config.

    Raises:
        ForeignFileError: A template is too long, or is no text.
    """
    templates: dict[str, str] = {}
    if PROCESSOR_TEMPLATE in files:
        templates |= _named(_settings(folder, files, PROCESSOR_TEMPLATE).get("chat_template"), folder)
    templates |= _named(tokenizer_config.get("chat_template"), folder)
    if CHAT_TEMPLATE in files:
        templates[DEFAULT_TEMPLATE] = read_small(files[CHAT_TEMPLATE], LARGEST_TEMPLATE)
    more = folder / MORE_TEMPLATES
    if more.is_dir() and not more.is_symlink():
        for name, path in model_files(more, repository_of(folder)).items():
            if name.endswith(".jinja"):
                templates[name.removesuffix(".jinja")] = read_small(path, LARGEST_TEMPLATE)
    for name, text in templates.items():
        if name != DEFAULT_TEMPLATE:
            template_file(name)  # refuses a name that cannot be that of a file
        if len(text) > LARGEST_TEMPLATE:
            raise ForeignFileError(
                f"the chat template {short(name)} in {folder} has {len(text)} characters, expected at most "
                f"{LARGEST_TEMPLATE}; remove it"
            )
    return templates


def _named(value: Any, folder: Path) -> dict[str, str]:
    """Read `chat_template` of a JSON file: one text, or a list of {name, template}."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT_TEMPLATE: value}
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    fits = isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("template"), str)
        for one in value
    )
    if not fits:
        raise ForeignFileError(
            f"chat_template in {folder / TOKENIZER_CONFIG} is {short(json.dumps(value))}, expected a text, or a list "
            "of objects with name and template; remove it, or download the model again"
        )
    return {one["name"]: one["template"] for one in value}
