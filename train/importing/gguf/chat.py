"""Chat templates, special tokens, ends of texts and defaults of sampling, from the metadata of a GGUF file."""

from collections.abc import Mapping

from ....contract.errors import UserError
from ....contract.generation_settings import DEFAULT_TEMPLATE, GenerationSettings, Role, sampling_of, template_file
from ..errors import ForeignFileError
from .metadata import Metadata
from .tokenizer import CONTROL, USER_DEFINED, ForeignTokenizer

ROLES: Mapping[Role, str] = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
ENDS = ("eos", "eot", "eom")
"""End of text, of a turn, of a message."""
KNOWN_ENDS = frozenset(
    {
        "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>",
        "<|end_of_turn|>", "<eos>",
    }
)  # fmt: skip
"""Special tokens that end a text wherever they occur; many files name only one end."""
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
"""Our names of sampling settings, and those after `general.sampling.`."""


def generation_of(metadata: Metadata, tokenizer: ForeignTokenizer) -> GenerationSettings:
    """Return where texts end and begin, and how they are sampled.

    Raises:
        UserError: An id is not one of the vocabulary, or no token ends a text.
    """
    tokens = tokenizer.vocabulary.tokens
    ids = {name: _token(metadata, name, len(tokens)) for name in (*ROLES.values(), *ENDS)}
    ends = [number for name in ENDS if (number := ids[name]) is not None]
    special = tokenizer.vocabulary.of_kind(CONTROL, USER_DEFINED)
    ends += [number for number in special if tokens[number] in KNOWN_ENDS]
    if not ends:
        raise ForeignFileError(
            f"{metadata.path} names no token that ends a text (tokenizer.ggml.eos_token_id); convert the model again"
        )
    bos = ids["bos"]
    add_bos = metadata.flag("tokenizer.ggml.add_bos_token", tokenizer.pre.add_bos)
    sampling = {ours: metadata.number(f"general.sampling.{theirs}") for ours, theirs in SAMPLING.items()
                if f"general.sampling.{theirs}" in metadata}  # fmt: skip
    if "general.sampling.penalty_repeat" in metadata:
        sampling["repetition_penalty"] = metadata.number("general.sampling.penalty_repeat")
    if "top_k" in sampling:
        sampling["top_k"] = int(sampling["top_k"])
    return GenerationSettings(
        eos_ids=tuple(dict.fromkeys(ends)),
        bos_id=bos,
        add_bos=add_bos and bos is not None,
        dialect="huggingface",
        special_tokens={
            role: tokens[number] for role, name in ROLES.items() if (number := ids[name]) is not None and tokens[number]
        },
        sampling=sampling_of(sampling),
    )


def templates_of(metadata: Metadata) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the chat templates by name, `default` for the main one, and notes on those that are left out."""
    templates: dict[str, str] = {}
    notes = []
    if "tokenizer.chat_template" in metadata:
        templates[DEFAULT_TEMPLATE] = metadata.text("tokenizer.chat_template")
    for name in metadata.texts("tokenizer.chat_templates", []):
        if name == DEFAULT_TEMPLATE or f"tokenizer.chat_template.{name}" not in metadata:
            continue
        try:
            template_file(name)
        except UserError as error:
            notes.append(f"a chat template is left out: {error}")
            continue
        templates[name] = metadata.text(f"tokenizer.chat_template.{name}")
    return templates, tuple(notes)


def _token(metadata: Metadata, name: str, count: int) -> int | None:
    """Return the id of a special token; None where the file names none."""
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in metadata:
        return None
    number = metadata.integer(key)
    if number >= count:
        raise ForeignFileError(f"{metadata.path}: {key} is {number:,}, but there are {count:,} tokens")
    return number
