"""The tokenizer of a run, the ends of its texts, and its chat templates."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from ...contract.errors import UserError
from ...contract.file_names import CHAT_TEMPLATE, GENERATION, TOKENIZER
from ...contract.generation_settings import GenerationSettings
from ...contract.messages import EOS
from ...train.data.tokenizers.ids import vocabulary_size
from ...train.run.files import read_generation, read_run_file


@dataclass(frozen=True)
class RunFiles:
    """The files of a run that tell how texts go in and out of its model."""

    tokenizer_json: str
    """Content of tokenizer.json."""
    tokenizer: Tokenizer
    """The same, loaded."""
    chat_template: str | None
    """The chat template, a Jinja text; None where the run was not trained on chats."""
    generation: GenerationSettings
    """Ends, special tokens and defaults of sampling: those that an import wrote, else those of a run trained here."""
    imported: bool
    """Whether an import wrote the ends; a run trained here has one end and names no special token."""
    templates: dict[str, str]
    """Chat templates besides the main one, by name."""


def read_files(run: Path, vocab_size: int) -> RunFiles:
    """Read the files of the run at `run`, whose model has `vocab_size` ids.

    Raises:
        UserError: A file is missing or damaged, or does not belong to the run.
    """
    tokenizer_json = read_run_file(run / TOKENIZER)
    tokenizer = _tokenizer(tokenizer_json, run / TOKENIZER, vocab_size)
    generation = _generation(run, tokenizer)
    template = run / CHAT_TEMPLATE
    return RunFiles(
        tokenizer_json,
        tokenizer,
        read_run_file(template) if template.exists() else None,
        generation,
        (run / GENERATION).exists(),
        {name: read_run_file(run / file) for name, file in generation.templates.items()},
    )


def _tokenizer(content: str, path: Path, vocab_size: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is damaged: {error}; restore it or train again") from error
    if vocabulary_size(tokenizer) > vocab_size:
        raise UserError(
            f"{path} has ids up to {vocabulary_size(tokenizer) - 1}, the model's vocabulary holds {vocab_size}; "
            "it is not this run's tokenizer: restore that, or train again"
        )
    return tokenizer


def _generation(run: Path, tokenizer: Tokenizer) -> GenerationSettings:
    settings = read_generation(run)
    if settings is None:
        eos = tokenizer.token_to_id(EOS)
        if eos is None:
            raise UserError(
                f"{run / TOKENIZER} has no token {EOS}, so it is not this run's tokenizer; restore it or train again"
            )
        return GenerationSettings(eos_ids=(eos,))
    ids = (*settings.eos_ids, *([] if settings.bos_id is None else [settings.bos_id]))
    unknown = next((number for number in ids if tokenizer.id_to_token(number) is None), None)
    if unknown is not None:
        raise UserError(
            f"{run / GENERATION} names the token {unknown}, which {run / TOKENIZER} does not have: they do not belong "
            "together; import the model again"
        )
    return settings
