"""Write a run as a folder of Hugging Face."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...contract.file_names import CHAT_TEMPLATE, TOKENIZER
from ...contract.files import write_whole
from ...contract.generation_settings import GenerationSettings
from ...contract.messages import EOS
from ...train.run.checkpoints.checkpoint import Checkpoint
from ...train.run.checkpoints.tensor_file import write_tensors
from ..folder import new_folder
from ..run.files import RunFiles, read_files
from .hf_family import outgoing
from .hf_tensors import hf_tensors

WEIGHTS = "model.safetensors"
MORE_TEMPLATES = "additional_chat_templates"


def write(checkpoint: Checkpoint, out: Path, log: Callable[[str], None]) -> None:
    """Write a checkpoint as a folder of the nearest Hugging Face family.

    Raises:
        UserError: No family has the features of this model, a file of its run is damaged, or the folder cannot be
            written. Nothing is written then.
    """
    config = checkpoint.config.model
    family = outgoing(config)
    files = read_files(checkpoint.run, config.vocab_size)
    log(f"writing {checkpoint.path} as a model of the family {family.family}")
    with new_folder(out) as folder:
        tensors = hf_tensors(config, family.family, checkpoint.model_state)
        size = write_tensors(folder / WEIGHTS, tensors)["bytes"]
        dtype = str(tensors["model.embed_tokens.weight"].dtype).removeprefix("torch.")
        ends = {"bos_token_id": files.generation.bos_id, "eos_token_id": _one_or_list(files.generation.eos_ids)}
        write_json(folder / "config.json", {**family.config, **ends, "dtype": dtype, "torch_dtype": dtype})
        write_json(folder / "generation_config.json", {**ends, **sampling_fields(files.generation)})
        write_whole(folder / TOKENIZER, files.tokenizer_json)
        write_json(folder / "tokenizer_config.json", tokenizer_fields(files, config.context_length))
        write_templates(folder, files)
    log(f"wrote {out} ({WEIGHTS} {size / 2**20:.1f} MiB)")
    log(f'next: python -c "from transformers import AutoModelForCausalLM as M; M.from_pretrained({str(out)!r})"')


def sampling_fields(settings: GenerationSettings) -> dict[str, Any]:
    """Return the defaults of sampling by the names of generation_config.json."""
    if settings.sampling.get("temperature") == 0:
        return {"do_sample": False}
    return {"do_sample": True, **settings.sampling} if settings.sampling else {}


def tokenizer_fields(files: RunFiles, context: int) -> dict[str, Any]:
    """Return the content of tokenizer_config.json."""
    special_tokens = files.generation.special_tokens if files.imported else {"eos": EOS}
    tokens = {f"{role}_token": text for role, text in special_tokens.items()}
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    return {**fields, "clean_up_tokenization_spaces": False, **tokens}


def write_templates(folder: Path, files: RunFiles) -> None:
    """Write the chat templates of a run where transformers looks for them."""
    if files.chat_template is not None:
        write_whole(folder / CHAT_TEMPLATE, files.chat_template)
    if files.templates:
        (folder / MORE_TEMPLATES).mkdir()
    for name, template in files.templates.items():
        write_whole(folder / MORE_TEMPLATES / f"{name}.jinja", template)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _one_or_list(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)
