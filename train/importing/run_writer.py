"""Write a foreign model as a run, completely or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from ...contract.errors import UserError
from ...contract.file_names import CHAT_TEMPLATE, CONFIG, GENERATION, HELDOUT, PROVENANCE, TOKENIZER
from ...contract.files import cannot_write, write_whole
from ...contract.generation_settings import DEFAULT_TEMPLATE, template_file
from ..config.run_config import RunConfig
from ..config.trainer import TrainerConfig
from ..data.config import TokenizerConfig
from ..model.config.model import ModelConfig
from ..model.hollow import hollow
from ..run.checkpoints.checkpoint import save_checkpoint
from ..run.checkpoints.tensor_file import LazyTensor
from ..run.counters import Counters
from ..run.folder import Run
from .errors import TensorsError, listed
from .source import ForeignModel, Work


@dataclass(frozen=True)
class Written:
    """An imported model on the disk."""

    run: Run
    config: ModelConfig
    parameters: int
    bytes: int
    """Size of its weights."""


def write_run(foreign: ForeignModel, run: Run, heldout: "Heldout", *, overwrite: bool = False, work: Work) -> Written:
    """Write the run of a foreign model.

    Args:
        foreign: The model.
        run: The folder to write.
        heldout: The held-out text, and where it is from.
        overwrite: Replace a run that exists.
        work: Shows how much of the weights is written.

    Raises:
        UserError: The run exists and `overwrite` is not given, is being trained, or cannot be written.
        TensorsError: A tensor is missing, left over or of another shape. The folder is as before, after any error.
    """
    state, parameters = checkpoint_state(foreign)
    size = sum(tensor.dtype.itemsize * _count(tensor.shape) for tensor in state.values())
    with replacing(run, overwrite) as folder:
        require_room(folder, size)
        config = RunConfig(
            tokenizer=TokenizerConfig(kind=(run.path / TOKENIZER).as_posix()),
            model=foreign.config,
            trainer=TrainerConfig(steps=0, max_seconds=None),
        )
        settings = replace(
            foreign.generation,
            templates={name: template_file(name) for name in foreign.templates if name != DEFAULT_TEMPLATE},
        )
        files = {TOKENIZER: foreign.tokenizer, HELDOUT: heldout.text, GENERATION: settings.to_json()}
        for name, template in foreign.templates.items():
            files[CHAT_TEMPLATE if name == DEFAULT_TEMPLATE else template_file(name)] = template
        provenance = {
            **asdict(foreign.provenance), "heldout": heldout.origin, "notes": list(foreign.notes),
            "imported_by": f"adaptive-lm {version('adaptive-lm')}",
        }  # fmt: skip
        files[PROVENANCE] = json.dumps(provenance, indent=1, ensure_ascii=False) + "\n"
        counters = {**vars(Counters()), "complete": True, "imported": True}
        save_checkpoint(folder / "checkpoints", 0, config, reported(state, work), {}, counters)
        for name, text in files.items():
            write_whole(folder / name, text)
        write_whole(folder / CONFIG, config.to_yaml())  # last: a folder without it is no run
    return Written(run, foreign.config, parameters, size)


@dataclass(frozen=True)
class Heldout:
    """A text to check and calibrate a model with."""

    text: str
    origin: str
    """`file`, `own` (the model's own samples) or `built-in`."""


def checkpoint_state(foreign: ForeignModel) -> tuple[dict[str, Tensor | LazyTensor], int]:
    """Return the tensors of the checkpoint, buffers included, and the number of parameters.

    Raises:
        TensorsError: They are not those of the model that the config describes.
    """
    config = foreign.config
    model = hollow(config)
    parameters = dict(model.named_parameters())  # a tied matrix once, as `embedding.weight`
    missing, unused = sorted(parameters.keys() - foreign.tensors.keys()), sorted(foreign.tensors.keys() - parameters)
    if missing or unused:
        what = f"lacks {listed(missing)}" if missing else f"has {listed(unused)} too many"
        raise TensorsError(
            f"{foreign.provenance.source} {what}: its tensors are not those of a model with its config; download it "
            "again, or import the model that it was made from"
        )
    for name, tensor in foreign.tensors.items():
        if tensor.shape != tuple(parameters[name].shape):
            raise TensorsError(
                f"{name} from {foreign.provenance.source} has the shape {list(tensor.shape)}, its config implies "
                f"{list(parameters[name].shape)}: the weights and the config are of two models; download both again"
            )
    state: dict[str, Tensor | LazyTensor] = {}
    for name, value in model.state_dict().items():
        tied = name == "head.weight" and config.tie_embeddings
        state[name] = foreign.tensors["embedding.weight" if tied else name] if value.is_meta else value
    return state, sum(value.numel() for value in parameters.values())


def reported(state: Mapping[str, Tensor | LazyTensor], work: Work) -> dict[str, Tensor | LazyTensor]:
    """Return the same tensors; each that is read is reported."""
    sizes = {name: _count(tensor.shape) * tensor.dtype.itemsize for name, tensor in state.items()}
    total, done = sum(sizes.values()), 0

    def watched(name: str, tensor: LazyTensor) -> LazyTensor:
        def read() -> Tensor:
            nonlocal done
            value = tensor.read()
            done += sizes[name]
            work("writing weights", done, total)
            return value

        return LazyTensor(tensor.shape, tensor.dtype, read)

    return {name: watched(name, tensor) if isinstance(tensor, LazyTensor) else tensor for name, tensor in state.items()}


def require_room(folder: Path, size: int) -> None:
    """Refuse to begin if the weights do not fit on the disk.

    Raises:
        UserError: The disk has less room than they take.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"the weights take {size / 2**20:.0f} MiB, the disk of {folder.parent} has {free / 2**20:.0f} MiB; make "
            "room, or work in a folder on another disk"
        )


@contextlib.contextmanager
def replacing(run: Run, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside the run to write into, and move it to the run's place at the end.

    After an error the folder is deleted and the run is as before.

    Raises:
        UserError: The run exists and `overwrite` is not given, is being trained, or cannot be written.
    """
    require_free(run, overwrite)
    temporary = run.path.with_name(f".{run.name}.importing-{os.getpid()}")
    old = run.path.with_name(f".{run.name}.old-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if run.path.exists():
            run.path.rename(old)
        temporary.rename(run.path)
    except OSError as error:
        raise cannot_write(Path(error.filename or run.path), error, "Nothing was imported") from error
    finally:
        if old.exists() and not run.path.exists():
            old.rename(run.path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def require_free(run: Run, overwrite: bool) -> None:
    """Refuse to replace a run that exists, unless asked to, or one that is being trained.

    Raises:
        UserError: It exists, or a process trains it.
    """
    if run.is_held():
        raise UserError(f"{run.path} is being trained; wait for it, or give the import another --name")
    if run.path.exists() and not overwrite:
        raise UserError(
            f"{run.path} exists already; give the import another --name, or replace it: the same command with "
            "--overwrite"
        )
    if run.path.exists() and not (run.path / CONFIG).is_file():
        raise UserError(f"{run.path} exists and is not a run, so it was left unchanged; give another --name")


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
