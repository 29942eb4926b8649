"""The folder of a run, runs/NAME, which one trainer at a time locks."""

import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ...contract.errors import UserError
from ...contract.file_names import CONFIG, VERSIONS
from ...contract.files import cannot_write, write_whole
from ..config.run_config import NAME, RunConfig
from .checkpoints.names import list_checkpoints

RUNS = Path("runs")
NAME_RULE = re.compile(NAME)


class Run:
    """The folder of a run; entering it takes its lock.

    Raises:
        UserError: on entering, another process trains it, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._lock: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.path / "checkpoints"

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint, which a new start would destroy."""
        return bool(list_checkpoints(self.checkpoints))

    def is_held(self) -> bool:
        """Return whether a process trains it now; the lock is tried only if its file names a holder."""
        path = self.path / "lock"
        try:
            if not path.stat().st_size:
                return False
            with path.open("a+", encoding="utf-8") as lock:
                return not _take(lock)  # a holder that was killed left its name, but not its lock
        except OSError:
            return False

    @property
    def resume_command(self) -> str:
        """The command that resumes it."""
        return f"adaptive train --resume --name {self.name}"

    def __enter__(self) -> Self:
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a+", encoding="utf-8")
            probe = self.checkpoints / f".writing-probe-{os.getpid()}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise cannot_write(self.path, error, "Nothing was trained") from error
        if not _take(self._lock):
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise UserError(
                f"{self.path} is being trained by {holder}; wait for it, stop it, or give this one another --name"
            )
        self._lock.truncate(0)
        self._lock.write(
            f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        self._lock.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()  # frees it; the file stays, or two processes could lock two files of one name
            self._lock = None

    def empty(self) -> None:
        """Delete what earlier training left; the folder and its lock stay."""
        for path in self.path.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.checkpoints.mkdir()

    def write(self, name: str, text: str) -> None:
        """Write one of the run's files, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            write_whole(self.path / name, text)
        except OSError as error:
            raise cannot_write(self.path / name, error) from error

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml."""
        self.write(CONFIG, config.to_yaml())

    def add_versions(self, versions: Mapping[str, Any]) -> None:
        """Append an entry to versions.json; there is one for each time the run was started or resumed."""
        path = self.path / VERSIONS
        try:
            sessions = json.loads(path.read_bytes())["sessions"] if path.exists() else []
        except (ValueError, KeyError, TypeError):
            sessions = []  # a note for people: not worth refusing to train
        self.write(VERSIONS, json.dumps({"sessions": [*sessions, versions]}, indent=1) + "\n")


def _take(lock: IO[str]) -> bool:
    """Take the lock without waiting; the system frees it when the process ends in any way."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def named_run(name: str, runs: Path = RUNS) -> Run:
    """Return the run of that name, existing or not.

    Raises:
        UserError: the name breaks the rule for names.
    """
    if not NAME_RULE.fullmatch(name):
        raise UserError(f"--name {name!r}: expected letters, digits, '.', '_' or '-', starting with a letter or digit")
    return Run(runs / name)


def next_run(stem: str, runs: Path = RUNS, *, again: bool = False) -> Run:
    """Return the first run that does not exist: `stem`-1, `stem`-2, ...; with `again` the last that does, if any."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "run"
    number = 1
    while (runs / f"{stem}-{number}").exists():
        number += 1
    return Run(runs / f"{stem}-{max(number - again, 1)}")


def newest_run(runs: Path = RUNS) -> Run:
    """Return the run that was trained last.

    Raises:
        UserError: there is no run.
    """
    folders = [path.parent for path in runs.glob("*/config.yaml")] if runs.is_dir() else []
    if not folders:
        raise UserError(f"there is no run in {runs.resolve()}; train one: adaptive train quickstart --name demo")
    return Run(max(folders, key=_last_written))


def _last_written(path: Path) -> float:
    return max(file.stat().st_mtime for file in (path / CONFIG, path / "metrics.jsonl") if file.exists())
