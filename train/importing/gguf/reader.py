"""Read a model in GGUF: config, tensors, tokenizer and chat settings."""

from pathlib import Path

from ..digests import digests
from ..errors import UnsupportedModelError
from ..source import Claims, ForeignModel, Provenance, Work
from .architectures import architecture_of
from .chat import generation_of, templates_of
from .file import GGUFFile
from .model_config import config_of, factors_of
from .parameters import parameters_of
from .tokenizer import tokenizer_of


def read_gguf(path: Path, work: Work) -> ForeignModel:
    """Read a model from a GGUF file, or from all its parts; its weights stay on the disk.

    Raises:
        UserError: It cannot be read, or not computed here.
    """
    file = GGUFFile(path)
    metadata = file.metadata
    architecture = architecture_of(metadata)
    tensors = Claims(file, str(path))
    config = config_of(metadata, tensors, architecture)
    parameters = parameters_of(
        tensors, config, factors_of(metadata, architecture, config), permuted=architecture.permuted
    )
    tokenizer = tokenizer_of(metadata)
    if len(tokenizer.vocabulary.tokens) > config.vocab_size:
        raise UnsupportedModelError(
            f"{path} has {len(tokenizer.vocabulary.tokens):,} tokens, but an embedding of {config.vocab_size:,}; it "
            "mixes two models: download it again"
        )
    templates, notes = templates_of(metadata)
    return ForeignModel(
        config=config,
        tensors=parameters,
        tokenizer=tokenizer.text,
        generation=generation_of(metadata, tokenizer),
        provenance=Provenance(
            source=str(path),
            format="gguf",
            family=metadata.architecture,
            licence=metadata.text("general.license", "") or None,
            files=digests({part.name: part for part in file.parts}, work),
        ),
        templates=templates,
        notes=(*tokenizer.notes, *notes),
    )
