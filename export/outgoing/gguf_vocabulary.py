"""A tokenizer.json as the vocabulary of a GGUF file."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import Tokenizer, models

from ...contract.errors import UserError
from ...contract.generation_settings import GenerationSettings
from ...train.importing.gguf.pre_tokenizers import PRE_TOKENIZERS
from ...train.importing.gguf.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED

WITHOUT_EFFECT = ("trim_offsets",)
"""Settings of pre-tokenizers that do not change ids."""


class Vocabulary(NamedTuple):
    """What a GGUF file says about tokens."""

    pre: str
    """Name of the pre-tokenizer."""
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    tokenizer_json: str
    generation: GenerationSettings
    template: str | None


def vocabulary_of(tokenizer_json: str, size: int, generation: GenerationSettings, template: str | None) -> Vocabulary:
    """Return the vocabulary of a byte-level tokenizer.

    Args:
        tokenizer_json: The tokenizer.
        size: Rows of the embedding, at least as many as there are ids.
        generation: Ends and special tokens.
        template: The chat template.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    content = json.loads(tokenizer_json)
    model = content["model"]
    if model["type"] != "BPE" or (content.get("decoder") or {}).get("type") != "ByteLevel":
        raise UserError(
            f"llama.cpp has no tokenizer like this {model['type']}, which is not byte-level; train with --tokenizer "
            "bpe or bytes, or export the run as ONNX"
        )
    pre = pre_name(content)
    if pre is None:
        raise UserError(
            "llama.cpp has no pre-tokenizer like that of tokenizer.json; those that it shares with us are "
            f"{', '.join(sorted(PRE_TOKENIZERS))}; train with --tokenizer bpe, or export the run as ONNX"
        )
    ids = Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True)
    tokens, kinds = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    for token, number in ids.items():
        tokens[number], kinds[number] = token, NORMAL
    for added in content.get("added_tokens", []):
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    # llama.cpp requires a merge. This one it never takes: its parts are no bytes.
    return Vocabulary(pre, tokens, kinds, merges or ["<none> <none>"], tokenizer_json, generation, template)


def pre_name(content: Mapping[str, Any]) -> str | None:
    """Return the name that GGUF gives the pre-tokenizer of a tokenizer.json; None where it has none."""
    bare = bool(content["model"]["merges"])
    own = _steps(content)
    for name, pre in PRE_TOKENIZERS.items():
        tokenizer = Tokenizer(models.BPE(ignore_merges=pre.whole_words))
        tokenizer.pre_tokenizer = pre.build()
        normalizer = pre.normalizer()
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        if own == _steps(json.loads(tokenizer.to_str())):
            return name
    # Without merges every byte is a token, wherever text is cut.
    return None if bare else "gpt-2"


def _steps(content: Mapping[str, Any]) -> list[Any]:
    """Return what a tokenizer.json does to text before the merges, in a form that can be compared."""

    def flat(part: Any, key: str) -> list[Any]:
        if part is None:
            return []
        if part["type"] == "Sequence":
            return [each for inner in part[key] for each in flat(inner, key)]
        defaults = {"use_regex": True, "invert": False} if part["type"] in ("ByteLevel", "Split") else {}
        return [defaults | {name: value for name, value in part.items() if name not in WITHOUT_EFFECT}]

    return [
        *flat(content.get("normalizer"), "normalizers"),
        *flat(content.get("pre_tokenizer"), "pretokenizers"),
        bool(content["model"].get("ignore_merges")),
    ]
