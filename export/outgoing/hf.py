"""Write a run as a folder of Hugging Face."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ...contract.errors import UserError
from ...contract.file_names import CHAT_TEMPLATE, GENERATION, TOKENIZER
from ...contract.files import cannot_write, write_whole
from ...contract.generation_settings import GenerationSettings
from ...contract.messages import EOS
from ...train.run.checkpoints.checkpoint import load_checkpoint
from ...train.run.checkpoints.tensor_file import write_tensors
from ...train.run.find import find
from .hf_family import outgoing
from .hf_tensors import hf_tensors

WEIGHTS = "model.safetensors"
MORE_TEMPLATES = "additional_chat_templates"


def export_hf(
    name: str | None, out: Path, *, checkpoint: str = "last", log: Callable[[str], None] = lambda line: None
) -> Path:
    """Write a run or checkpoint as a folder of the nearest Hugging Face family, and return its path.

    Args:
        name: Name or path of a run, or path of a checkpoint; None takes the newest run.
        out: Folder to write.
        checkpoint: Which checkpoint of a run: `best`, `last` or a step.
        log: Called with each line for the user.

    Raises:
        UserError: No family has the features of this model, or the folder cannot be written. Nothing is written then.
    """
    loaded = load_checkpoint(find(name, checkpoint))
    config, run = loaded.config.model, loaded.run
    family = outgoing(config)
    tokenizer = _read(run / TOKENIZER)
    settings = generation_of(run, tokenizer)
    log(f"writing {loaded.path} as a model of the family {family.family}")
    with written_whole(out) as folder:
        tensors = hf_tensors(config, family.family, loaded.model_state)
        size = write_tensors(folder / WEIGHTS, tensors)["bytes"]
        dtype = str(tensors["model.embed_tokens.weight"].dtype).removeprefix("torch.")
        ends = {"bos_token_id": settings.bos_id, "eos_token_id": _one_or_list(settings.eos_ids)}
        write_json(folder / "config.json", {**family.config, **ends, "dtype": dtype, "torch_dtype": dtype})
        write_json(folder / "generation_config.json", {**ends, **sampling_fields(settings)})
        write_whole(folder / TOKENIZER, tokenizer)
        write_json(folder / "tokenizer_config.json", tokenizer_fields(settings, config.context_length))
        copy_templates(run, folder, settings)
    log(f"wrote {out} ({WEIGHTS} {size / 2**20:.1f} MiB)")
    log(f'next: python -c "from transformers import AutoModelForCausalLM as M; M.from_pretrained({str(out)!r})"')
    return out


def generation_of(run: Path, tokenizer: str) -> GenerationSettings:
    """Return the ends and special tokens of a run; one that was trained here ends its texts with one token."""
    if (run / GENERATION).exists():
        return GenerationSettings.from_json(_read(run / GENERATION), str(run / GENERATION))
    end = Tokenizer.from_str(tokenizer).token_to_id(EOS)
    if end is None:
        raise UserError(
            f"{run / TOKENIZER} has no token {EOS}, so it is not this run's tokenizer; restore it or train again"
        )
    return GenerationSettings(eos_ids=(end,), special_tokens={"eos": EOS})


def sampling_fields(settings: GenerationSettings) -> dict[str, Any]:
    """Return the defaults of sampling by the names of generation_config.json."""
    if settings.sampling.get("temperature") == 0:
        return {"do_sample": False}
    return {"do_sample": True, **settings.sampling} if settings.sampling else {}


def tokenizer_fields(settings: GenerationSettings, context: int) -> dict[str, Any]:
    """Return the content of tokenizer_config.json."""
    tokens = {f"{role}_token": text for role, text in settings.special_tokens.items()}
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    return {**fields, "clean_up_tokenization_spaces": False, **tokens}


def copy_templates(run: Path, folder: Path, settings: GenerationSettings) -> None:
    """Write the chat templates of a run where transformers looks for them."""
    if (run / CHAT_TEMPLATE).exists():
        write_whole(folder / CHAT_TEMPLATE, _read(run / CHAT_TEMPLATE))
    if settings.templates:
        (folder / MORE_TEMPLATES).mkdir()
    for name, file in settings.templates.items():
        write_whole(folder / MORE_TEMPLATES / f"{name}.jinja", _read(run / file))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` to write into, and move it to `out` at the end; after an error delete it.

    Raises:
        UserError: `out` exists and is not empty, or cannot be written.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another --out, or remove it")
    temporary = out.with_name(f".{out.name}.writing-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise cannot_write(Path(error.filename or out), error, "Nothing was exported") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _one_or_list(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}, a file of the run: {error}; restore it, or train again") from error
