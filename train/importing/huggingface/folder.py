"""Read a model from a folder of Hugging Face."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from ...model.config.model import ModelConfig
from ...run.checkpoints.tensor_file import LazyTensor
from ..digests import digests
from ..errors import ForeignFileError, UnsupportedModelError, listed, short
from ..source import Claims, ForeignModel, Provenance, Work
from .decoder import Decoder
from .families import FAMILIES, OTHERS
from .gpt import GPT2, GPTNeoX
from .paths import model_files, read_json, read_small, repository_of, snapshot_of
from .safetensors_files import INDEX, SafetensorsSource, weight_files
from .settings import Settings
from .tokenizer import read_tokenizer

CONFIG = "config.json"
README = "README.md"
LARGEST_README = 4 * 2**20


def read_folder(path: Path, work: Work) -> ForeignModel:
    """Read a model from a folder; its weights stay on the disk.

    Raises:
        ForeignFileError: A file is missing or damaged.
        UnsupportedModelError: The family, or a setting of it, cannot be computed here.
        TensorsError: A tensor is missing, left over, or of another shape.
    """
    folder = snapshot_of(path)
    files = model_files(folder)
    if CONFIG not in files:
        raise ForeignFileError(f"{folder / CONFIG} is no file; download the model again")
    settings = Settings(_object(files[CONFIG], folder / CONFIG), str(folder / CONFIG))
    settings, kind = text_part(settings)
    require_known(settings, kind)
    weights = weight_files(folder, files)
    source = SafetensorsSource(weights, files.get(INDEX) if len(weights) > 1 else None)
    settings.require_no_missing_feature()
    layout = layout_of(settings, kind)
    config = validated(layout.config(), settings.place)
    claims = Claims(source, str(folder), prefix_of(layout, source.names()))
    tensors = layout.tensors(claims) | output_head(claims, layout)
    notes = [*layout.notes(), *leave_out_other_parts(claims)]
    claims.require_all_taken()
    unknown = settings.unknown()
    if unknown:
        notes.append(f"{settings.place} has fields that this program does not know and does not use: {listed(unknown)}")
    tokenizer = read_tokenizer(folder, files, settings, config.vocab_size)
    read = {**weights, **{name: files[name] for name in tokenizer.files}, CONFIG: files[CONFIG]}
    provenance = Provenance(name_of(path, folder), "huggingface", kind, licence(files), digests(read, work))
    return ForeignModel(
        config, tensors, tokenizer.text, tokenizer.generation, provenance, tokenizer.templates, tuple(notes)
    )


def _object(path: Path, place: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ForeignFileError(f"{place} holds no object; download the model again")
    return content


def text_part(settings: Settings) -> tuple[Settings, str]:
    """Return the settings of the language model and its family; a model of pictures and text has them in a section."""
    kind = settings.text("model_type", "")
    section = settings.section("text_config") if kind == "gemma3" else None
    if section is None:
        return settings, kind
    inner = {**section.values}
    for name in ("eos_token_id", "bos_token_id", "tie_word_embeddings"):
        if settings.has(name):
            inner.setdefault(name, settings.raw(name))
    return Settings(inner, section.place), section.text("model_type", "gemma3_text")


class Layout(Protocol):
    """The config and the tensors of a family."""

    tied: bool
    """Whether embedding and output head are one matrix."""
    vocab: int
    dim: int

    @property
    def prefixes(self) -> Sequence[str]:
        """Return what may stand before the names of its tensors, the most specific first."""

    @property
    def first(self) -> str:
        """Return a tensor that every model has."""

    @property
    def head(self) -> str:
        """Return the output head, which stands outside the prefix."""

    def config(self) -> dict[str, Any]:
        """Return the sections of our config."""

    def tensors(self, claims: Claims) -> dict[str, LazyTensor]:
        """Take all tensors but a separate output head, by our names and in our layouts."""

    def notes(self) -> list[str]:
        """Return lines for the user."""


OWN_LAYOUTS: Mapping[str, Callable[[Settings], Layout]] = {"gpt2": GPT2, "gpt_neox": GPTNeoX}
"""Families that are no decoders of Llama's kind."""


def layout_of(settings: Settings, kind: str) -> Layout:
    """Return how a family stores its models."""
    return OWN_LAYOUTS[kind](settings) if kind in OWN_LAYOUTS else Decoder(settings, FAMILIES[kind])


def require_known(settings: Settings, kind: str) -> None:
    """Refuse a family that cannot be read, and a model that is no language model.

    Raises:
        UnsupportedModelError: It is one.
    """
    known = sorted([*FAMILIES, *OWN_LAYOUTS])
    if kind not in known:
        feature = OTHERS.get(kind)
        missing = f", which needs {feature}: this program has none" if feature else ""
        raise UnsupportedModelError(
            f"{settings.place} is of the family {short(kind or '(none)')}{missing}. Families that can be read: "
            f"{', '.join(known)}; choose a model of one of them"
        )
    architectures = settings.raw("architectures") or []
    names = architectures if isinstance(architectures, list) else [architectures]
    ends = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "Model")
    if names and not any(str(name).endswith(ends) for name in names):
        raise UnsupportedModelError(
            f"{settings.place} is a {short(names[0])}, which has no output head for text; expected one whose name "
            "ends in ForCausalLM"
        )


def validated(values: Mapping[str, Any], place: str) -> ModelConfig:
    """Make the config of our model.

    Raises:
        UnsupportedModelError: A value is outside what a model of ours can have.
    """
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UnsupportedModelError(
            f"{place} describes a model that this program cannot compute: {field + ': ' if field else ''}"
            f"{short(first['msg'].removeprefix('Value error, '), 300)}; choose another model"
        ) from error


def prefix_of(layout: Layout, names: AbstractSet[str]) -> str:
    """Return what stands before the names of the tensors."""
    return next((prefix for prefix in layout.prefixes if prefix + layout.first in names), layout.prefixes[-1])


def output_head(claims: Claims, layout: Layout) -> dict[str, LazyTensor]:
    """Take the output head; none where it is tied, although some files hold it once more."""
    outside = "language_model." if claims.prefix == "language_model.model." else ""
    claims.ignore_full(outside + layout.head)
    if layout.tied:
        return {}
    head = Claims(claims.source, claims.place, outside)
    return {"head.weight": head.take(layout.head, (layout.vocab, layout.dim))}


def leave_out_other_parts(claims: Claims) -> list[str]:
    """Mark the tensors of pictures as known; return a note about them."""
    parts = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
    others = [name for name in claims.source.names() if name.startswith(parts)]
    for name in others:
        claims.ignore_full(name)
    return ["the part of the model that reads pictures was left out"] if others else []


def name_of(path: Path, folder: Path) -> str:
    """Return the name on the hub where the path is in the hub's cache, else the path as typed."""
    name = repository_of(folder).name
    return name.removeprefix("models--").replace("--", "/") if name.startswith("models--") else str(path)


def licence(files: Mapping[str, Path]) -> str | None:
    """Return the licence that the head of the README states, or that there is a file of it; None without either."""
    if README in files:
        try:
            head = read_small(files[README], LARGEST_README).split("---")
        except ForeignFileError:
            head = []
        for line in head[1].splitlines() if len(head) > 2 and not head[0].strip() else []:
            key, _, value = line.partition(":")
            if key.strip() in ("license", "license_name") and value.strip():
                return value.strip().strip("'\"")[:100]
    return next((f"see {name}" for name in sorted(files) if name.upper().startswith("LICEN")), None)
