"""Runs and checkpoints by what a user types: a name, a path, `best`, `last` or a step."""

from pathlib import Path

from ...contract.errors import UserError
from ...contract.file_names import CONFIG
from ...contract.files import user_path
from .checkpoints.best import checkpoint_of
from .folder import RUNS, newest_run


def find(name: str | None, which: str = "last") -> Path:
    """Find a checkpoint.

    Args:
        name: Name or path of a run, or path of a checkpoint; None takes the newest run.
        which: Which checkpoint of a run: `best`, `last`, or a step.

    Raises:
        UserError: There is no such run, or it has no such checkpoint.
    """
    path = newest_run().path if name is None else find_run(name)
    if which != "last" and not (path / "checkpoints").is_dir():
        raise UserError(f"--checkpoint {which} needs a run, but {path} is not a run; leave --checkpoint out")
    return checkpoint_of(path, which)


def find_run(name: str) -> Path:
    """Find a run by name or path, or a checkpoint by path.

    Raises:
        UserError: There is neither.
    """
    # the run first: a folder here may share its name, and can be given as ./NAME
    if Path(name).name == name and (RUNS / name / CONFIG).is_file():
        return RUNS / name
    path = user_path(name)
    if path.is_dir():
        return path
    names = sorted(path.parent.name for path in RUNS.glob(f"*/{CONFIG}"))
    advice = (
        f"runs here: {', '.join(names)}" if names else "there are no runs here; train one: adaptive train quickstart"
    )
    raise UserError(f"there is no run or checkpoint {name}; {advice}")
