"""Checkpoints: folders written whole or not at all, verified when read, the newest good one first.

`checkpoints/step-NNNNNN/` holds model.safetensors, optimizer.safetensors, state.json and, written last, complete.json
with the size and sha256 of the others. It is written under another name and then renamed, so a folder of that name was
complete when it appeared; its digests find later damage. Nothing is pickled.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ....contract.errors import UserError
from ....contract.file_names import CONFIG
from ....contract.files import cannot_write, remove_temporary_files, sync_folder, user_path
from ...config.run_config import RunConfig, make_config, merge
from .adapted import AdaptedTensors, read_base
from .mapped_tensors import MappedTensors
from .names import COMPLETE, FILES, checkpoint_name, list_checkpoints
from .tensor_file import LazyTensor, write_tensors

FORMAT_VERSION = 1
BEFORE: Mapping[str, Mapping[str, Any]] = {"optimizer": {"expert_turns": 1}}
"""Settings that a checkpoint of an earlier version does not have, with the values by which that version trained."""


class DamagedCheckpoint(ValueError):  # noqa: N818  # it names a state, not an error
    """A checkpoint that cannot be trusted; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    config: RunConfig
    model_state: Mapping[str, Tensor]
    """Weights and buffers by name, in the dtypes of the file. Each is read when it is taken; adapters are merged."""
    step: int
    path: Path
    run: Path
    """The folder of the run it belongs to."""
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)
    """Optimizer slots and random states by name."""
    state: dict[str, Any] = field(default_factory=dict)
    """Counters, digests and the config, as in state.json."""
    damaged: tuple[Path, ...] = ()
    """Newer checkpoints that were skipped because they are damaged."""


def warn(message: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def save_checkpoint(
    folder: Path,
    step: int,
    config: RunConfig,
    model_state: Mapping[str, Tensor | LazyTensor],
    optimizer_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write `folder/step-NNNNNN`, and return it.

    Raises:
        UserError: the checkpoint could not be written (disk full, no permission); earlier checkpoints are untouched.
    """
    place = folder / checkpoint_name(step)
    temporary = folder / f".writing-{place.name}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True, exist_ok=False)
        written = {
            "model.safetensors": write_tensors(temporary / "model.safetensors", model_state),
            "optimizer.safetensors": write_tensors(temporary / "optimizer.safetensors", optimizer_state),
        }
        full = {"format_version": FORMAT_VERSION, "step": step, **state, "config": config.model_dump(mode="json")}
        written["state.json"] = write_json(temporary / "state.json", full)
        write_json(temporary / COMPLETE, {"format_version": FORMAT_VERSION, "step": step, "files": written})
        sync_folder(temporary)
        if place.exists():  # only a damaged one is ever written again
            shutil.rmtree(place)
        temporary.rename(place)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        good = list_checkpoints(folder)
        keeps = f"The checkpoint before it, {good[-1]}, is intact" if good else "There is no earlier checkpoint"
        raise cannot_write(place, error, keeps) from error
    return place


def write_json(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write and sync a JSON file; return its size and digest for complete.json."""
    data = json.dumps(content, indent=1, allow_nan=False).encode()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def verify(path: Path, digests: bool = True) -> None:
    """Compare every file of a checkpoint with complete.json; without `digests`, only the sizes.

    Raises:
        DamagedCheckpoint: a file is missing, of another size, or of another digest.
    """
    try:
        complete = json.loads((path / COMPLETE).read_bytes())
        expected = {name: (complete["files"][name]["bytes"], complete["files"][name]["sha256"]) for name in FILES}
        version = complete["format_version"]
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path / COMPLETE} is missing: the checkpoint was not written completely") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path / COMPLETE} cannot be read: {error}") from error
    if version != FORMAT_VERSION:
        raise DamagedCheckpoint(
            f"{path / COMPLETE} is of format version {version}, this program reads {FORMAT_VERSION}"
        )
    for name, (size, digest) in expected.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpoint(f"{file} is missing")
        if file.stat().st_size != size:
            raise DamagedCheckpoint(f"{file} has {file.stat().st_size} bytes, expected {size}")
        if not digests:
            continue
        with file.open("rb") as opened:
            actual = hashlib.file_digest(opened, "sha256").hexdigest()
        if actual != digest:
            raise DamagedCheckpoint(f"{file} has sha256 {actual[:12]}..., expected {digest[:12]}...")


def read_checkpoint(path: Path, damaged: tuple[Path, ...] = ()) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        DamagedCheckpoint: it is incomplete or not what was written.
        UserError: the checkpoint is intact, but this version of the program does not accept its config.
    """
    verify(path)
    try:
        state = json.loads((path / "state.json").read_bytes())
        config = make_config(merge(BEFORE, state.pop("config")))
        model_state: Mapping[str, Tensor] = MappedTensors(path / "model.safetensors")
        if config.lora is not None:
            model_state = AdaptedTensors(read_base(path.parent.parent), model_state, config.lora)
        optimizer_state = load_file(path / "optimizer.safetensors")
        step = int(state["step"])
    except UserError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from error
    return Checkpoint(config, model_state, step, path, path.parent.parent, optimizer_state, state, damaged)


def newest_good(run: Path, warning: Callable[[str], None] = warn) -> Checkpoint | None:
    """Read the newest good checkpoint of a run, with a warning for each damaged one; None if there is none.

    Raises:
        UserError: there are checkpoints and all are damaged.
    """
    problems: list[str] = []
    damaged: list[Path] = []
    for path in reversed(list_checkpoints(run / "checkpoints")):
        try:
            checkpoint = read_checkpoint(path, tuple(damaged))
        except DamagedCheckpoint as error:
            problems.append(str(error))
            damaged.append(path)
            continue
        for problem in problems:
            warning(f"damaged checkpoint: {problem}; falling back to {checkpoint.path}")
        return checkpoint
    if problems:
        raise UserError(
            f"every checkpoint of {run} is damaged:\n  " + "\n  ".join(problems) + "\n"
            "Restore one from a backup, or train again under another --name"
        )
    return None


def load_checkpoint(path_or_run: str | Path, warning: Callable[[str], None] = warn) -> Checkpoint:
    """Read a checkpoint by its own folder, or the newest good one of a run's folder.

    Raises:
        UserError: there is no such folder, it holds no checkpoint, or the checkpoint is damaged.
    """
    path = user_path(path_or_run)
    if not path.is_dir():
        raise UserError(f"there is no run or checkpoint at {path}; runs are folders such as runs/NAME: see `ls runs`")
    if (path / COMPLETE).exists() or (path / FILES[0]).exists():
        try:
            return read_checkpoint(path)
        except DamagedCheckpoint as error:
            raise UserError(
                f"damaged checkpoint: {error}; name the run's folder to take its newest good one"
            ) from error
    checkpoint = newest_good(path, warning)
    if checkpoint is None:
        raise UserError(
            f"{path} has no checkpoint; it died before its first. Begin it again: adaptive train {path / CONFIG} "
            f"--name {path.name}"
        )
    return checkpoint


def clean(folder: Path) -> None:
    """Remove the temporary files of a killed process from the run's folder. The lock of the run must be held."""
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)
    remove_temporary_files(folder.parent)


def set_aside(paths: tuple[Path, ...]) -> None:
    """Rename damaged checkpoints to NAME.damaged, so that they are not tried again but can be inspected."""
    for path in paths:
        with contextlib.suppress(OSError):  # one that cannot be renamed is skipped again next time
            path.rename(path.with_name(f"{path.name}.damaged"))


def prune(
    folder: Path,
    keep: int,
    trusted: frozenset[Path] = frozenset(),
    warning: Callable[[str], None] = warn,
    best: Path | None = None,
) -> None:
    """Delete all but the newest `keep` good checkpoints and the `best`.

    None is deleted before `keep` newer ones have been verified. Of those in `trusted`, written or read by this process,
    only the sizes are compared.
    """
    good = 0
    for path in reversed(list_checkpoints(folder)):
        if good >= keep:
            if path == best:
                continue
            try:
                shutil.rmtree(path)
            except OSError as error:
                warning(f"cannot delete the old checkpoint {path}: {error.strerror}; training continues")
            continue
        try:
            verify(path, digests=path not in trusted)
            good += 1
        except DamagedCheckpoint as error:
            warning(f"damaged checkpoint: {error}; older ones are kept in its place")
