"""The run that training goes on from: its config, its weights, and the files of its tokenizer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...contract.errors import UserError
from ...contract.file_names import CHAT_TEMPLATE, GENERATION, PROVENANCE, TOKENIZER
from ...contract.generation_settings import GenerationSettings
from ..config.origin import OriginConfig
from ..config.run_config import RunConfig, make_config, merge
from ..data.tokenizers.given_tokenizer import GivenTokenizer
from ..data.tokenizers.ids import eos_id
from ..data.tokenizers.tokenizer_json import parse_tokenizer
from ..model.config.model import ModelConfig
from ..model.continued import contradictions
from .checkpoints.checkpoint import Checkpoint, load_checkpoint
from .checkpoints.names import COMPLETE
from .files import read_generation, read_run_file
from .find import find, find_run
from .folder import Run

TEXT_LENGTH = 512
"""Most tokens of a training sequence if the recipe names none: the context of an imported model is often far longer."""
LENGTHS = ("sequence_length", "sequence_lengths")


def read_origin(origin: OriginConfig) -> Checkpoint:
    """Read the checkpoint that training goes on from.

    Raises:
        UserError: There is no such run or checkpoint, it is damaged, or its weights are not those that were named.
    """
    checkpoint = load_checkpoint(find(origin.run, origin.checkpoint))
    digest = digest_of_weights(checkpoint)
    if origin.sha256 is not None and origin.sha256 != digest:
        raise UserError(
            f"the weights of {checkpoint.path} have the digest {digest[:12]}, expected {origin.sha256[:12]}: "
            f"{origin.run} has changed since; restore it, or go on from it as it is now: --from {origin.run}"
        )
    return checkpoint


def digest_of_weights(checkpoint: Checkpoint) -> str:
    """Return the sha256 of the file of its weights, as it was verified."""
    return str(complete_file(checkpoint)["sha256"])


def complete_file(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return size and sha256 of the file of its weights."""
    content = json.loads((checkpoint.path / COMPLETE).read_bytes())
    weights: Mapping[str, Any] = content["files"]["model.safetensors"]
    return weights


def config_from(
    origin: OriginConfig, base: Mapping[str, Any], overrides: Sequence[Mapping[str, Any]] = ()
) -> RunConfig:
    """Make the config of a run that goes on from another one: its model and tokenizer, and all else as given.

    Args:
        origin: The run and its checkpoint.
        base: The recipe.
        overrides: Settings that differ from those of the recipe, one after the other.

    Raises:
        UserError: The run cannot be read, or a setting contradicts its weights or its tokenizer.
    """
    checkpoint = read_origin(origin)
    given: dict[str, Any] = dict(base)
    for one in overrides:
        given = merge(given, one)
    own = checkpoint.config
    model = _model(own.model, given.get("model"), origin.run)
    _require_tokenizer(own, given.get("tokenizer"), origin.run)
    trainer = given.get("trainer")
    lengths = {} if isinstance(trainer, Mapping) and any(trainer.get(name) for name in LENGTHS) else {
        "trainer": {"sequence_length": min(TEXT_LENGTH, model.context_length)}
    }  # fmt: skip
    # the path of a checkpoint is recorded as its run and its step
    run = origin.run if find_run(origin.run) == checkpoint.run else str(checkpoint.run)
    resolved = OriginConfig(run=run, checkpoint=str(checkpoint.step), sha256=digest_of_weights(checkpoint))
    taken = {
        "model": model.model_dump(mode="json"),
        "tokenizer": own.tokenizer.model_dump(mode="json"),
        "origin": resolved.model_dump(mode="json"),
    }
    rest = [{name: value for name, value in one.items() if name not in taken} for one in overrides]
    return make_config({**merge(base, lengths), **taken}, rest)


def _model(own: ModelConfig, given: Any, name: str) -> ModelConfig:
    """Return the model of the run with the settings that the recipe may change.

    Raises:
        UserError: A setting contradicts the weights.
    """
    if not given:
        return own
    if not isinstance(given, Mapping):
        return make_config({"model": given}).model  # which says what is wrong with it
    wanted = {key: value for key, value in given.items() if key != "vocab_size" or value}
    model = make_config({"model": merge(own.model_dump(mode="json"), wanted)}).model
    wrong = contradictions(own, model)
    if wrong:
        lines = "\n  ".join(f"model.{key}: {values[1]!r}, in {name} {values[0]!r}" for key, values in wrong.items())
        raise UserError(
            f"these settings contradict the weights of {name}:\n  {lines}\n"
            "Leave them out: the model is that of the run. A recipe for new models cannot be used with --from; give "
            f"the text instead: adaptive train --from {name} --data FILE"
        )
    return model


def _require_tokenizer(own: RunConfig, given: Any, name: str) -> None:
    """Refuse a tokenizer other than that of the run.

    Raises:
        UserError: The recipe or a flag names another one.
    """
    if not isinstance(given, Mapping):
        return
    before = own.tokenizer.model_dump(mode="json")
    for key, value in given.items():
        if value is not None and before.get(key) != value:
            raise UserError(
                f"tokenizer.{key} is {value!r}, in {name} {before.get(key)!r}: the weights belong to the token ids of "
                f"its tokenizer; leave --tokenizer, --vocab-size and the section tokenizer out"
            )


def carry_over(checkpoint: Checkpoint, config: RunConfig, run: Run) -> None:
    """Copy tokenizer, chat template, ends, sampling and provenance into the folder of a new run.

    A chat template that the config names takes the place of a foreign one, and our dialect that of Hugging Face.

    Raises:
        UserError: A file cannot be read or written.
    """
    source, files = checkpoint.run, {TOKENIZER: read_run_file(checkpoint.run / TOKENIZER)}
    generation = read_generation(source)
    foreign = generation is not None and generation.dialect == "huggingface"
    replaced = foreign and config.data.chat_template is not None
    if generation is not None:
        if replaced:
            generation = GenerationSettings(
                eos_ids=generation.eos_ids, bos_id=generation.bos_id, add_bos=generation.add_bos,
                special_tokens=generation.special_tokens, sampling=generation.sampling, stop=generation.stop,
            )  # fmt: skip
        files[GENERATION] = generation.to_json()
        files |= {file: read_run_file(source / file) for file in generation.templates.values()}
    if (source / CHAT_TEMPLATE).exists() and not replaced:
        files[CHAT_TEMPLATE] = read_run_file(source / CHAT_TEMPLATE)
    if (source / PROVENANCE).exists() and config.origin is not None:
        provenance = json.loads(read_run_file(source / PROVENANCE))
        provenance["trained_from"] = config.origin.model_dump(mode="json")
        files[PROVENANCE] = json.dumps(provenance, indent=1, ensure_ascii=False) + "\n"
    for name, text in files.items():
        run.write(name, text)


def given_tokenizer(run: Path) -> GivenTokenizer:
    """Return the tokenizer that `carry_over` wrote into the folder of a run.

    Raises:
        UserError: A file cannot be read, or is damaged.
    """
    content, generation = read_run_file(run / TOKENIZER), read_generation(run)
    name = str(run / TOKENIZER)
    template = read_run_file(run / CHAT_TEMPLATE) if (run / CHAT_TEMPLATE).exists() else None
    if generation is None:
        return GivenTokenizer(content, name, eos_id(parse_tokenizer(content, name)), template=template)
    foreign = generation.dialect == "huggingface"
    return GivenTokenizer(
        content,
        name,
        generation.eos_ids[0],
        generation.bos_id if generation.add_bos else None,
        None if foreign else template,
        foreign and template is not None,
    )


def refuse_itself(run: Run, checkpoint: Checkpoint) -> None:
    """Refuse to replace the run that the weights come from.

    Raises:
        UserError: Both are the same folder.
    """
    if checkpoint.run.resolve() == run.path.resolve():
        raise UserError(
            f"{run.path} is the run that training goes on from, and would be deleted; give the new run another --name"
        )
