"""Import a model that another program wrote: read it, find a held-out text, write the run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...contract.errors import UserError
from ...contract.files import user_path
from ...contract.text.file import read_text
from ..run.folder import named_run
from .errors import ForeignFileError
from .heldout import own_text
from .run_writer import Heldout, Written, require_free, write_run
from .source import ForeignModel, Work, rows


def import_model(
    path: Path,
    name: str,
    *,
    context: int | None = None,
    heldout: Path | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] = lambda line: None,
    work: Work = lambda what, done, total: None,
) -> Written:
    """Import a model as a run.

    Args:
        path: A folder in the format of Hugging Face, or a GGUF file.
        name: Name of the run.
        context: Longest sequence of the run in tokens; None takes the model's own.
        heldout: A text to check and calibrate the model with; None takes samples of the model itself.
        overwrite: Replace a run that exists.
        log: Called with each line for the user.
        work: Shows the progress of long work.

    Raises:
        UserError: There is no such file, it is damaged, its model cannot be computed here, or the run cannot be
            written. Nothing is written then.
    """
    run = named_run(name)
    require_free(run, overwrite)
    text = None if heldout is None else Heldout(read_text(heldout), "file")
    foreign = capped(read_foreign(user_path(path), work), context)
    for note in foreign.notes:
        log(f"note: {note}")
    return write_run(foreign, run, text or own_text(foreign, log), overwrite=overwrite, work=work)


def read_foreign(path: Path, work: Work) -> ForeignModel:
    """Read a model by the kind of its file or folder; its weights stay on the disk.

    Raises:
        UserError: It cannot be read, or not computed here.
    """
    if path.is_dir():
        from .huggingface.folder import read_folder

        return read_folder(path, work)
    if not path.exists():
        raise ForeignFileError(
            f"there is no file or folder {path}; expected a folder with config.json and *.safetensors, or a .gguf file"
        )
    if path.suffix == ".gguf":
        from .gguf.reader import read_gguf

        return read_gguf(path, work)
    raise ForeignFileError(
        f"{path} is a file that is not .gguf; expected a .gguf file, or the folder that holds config.json and "
        "*.safetensors: name the folder"
    )


def capped(foreign: ForeignModel, context: int | None) -> ForeignModel:
    """Shorten the context of a model; None leaves it.

    Raises:
        UserError: The model's own context is shorter.
    """
    config = foreign.config
    if context is None or context == config.context_length:
        return foreign
    if context > config.context_length:
        raise UserError(
            f"--context {context} is longer than the context of this model, {config.context_length} tokens; leave "
            "--context out, or give a smaller number"
        )
    tensors = dict(foreign.tensors)
    if "learned_positions" in tensors:
        tensors["learned_positions"] = rows(tensors["learned_positions"], 0, context)
    shorter = type(config).model_validate({**config.model_dump(), "context_length": context})
    return replace(foreign, config=shorter, tensors=tensors)
