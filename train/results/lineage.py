"""Runs and the runs they are to better: what stands as the best, and what a loss is held against."""

from __future__ import annotations

from pathlib import Path

from ...contract.errors import UserError
from ..config.gates import GatesConfig
from ..config.run_config import RunConfig
from ..run.folder import Run
from .summary import Summary, summary


def standing(path: Path) -> Path | None:
    """The run that stands as the best in the line that ends in the folder `path`: itself where it is complete and its
    gates hold, else what stands at its parent; None where nothing does."""
    seen: set[Path] = set()
    while path not in seen and path.is_dir():
        seen.add(path)
        try:
            found = summary(path)
        except UserError:
            return None
        if found.holds:
            return path
        if found.parent is None:
            return None
        path = path.with_name(found.parent)
    return None


def loss_of(found: Summary, gates: GatesConfig) -> float | None:
    """The loss of a run that the gates mean."""
    return found.val_loss if gates.loss == "held_out" else found.loss


def rivals(run: Run, config: RunConfig) -> dict[str, float | None]:
    """Run -> the loss that `run` may not exceed: its parent's, and that of the best since; {} where none is asked."""
    if config.parent is None or not config.gates.no_worse_than_parent:
        return {}
    parent = run.path.with_name(config.parent)
    best = standing(parent)
    paths = [parent] if best in (None, parent) else [parent, best]
    return {path.name: measured(path, config.gates) for path in paths}


def measured(path: Path, gates: GatesConfig) -> float | None:
    """The loss of the run in the folder `path`, None where it is gone: that is no reason to lose the end of another."""
    try:
        return loss_of(summary(path), gates)
    except UserError:
        return None


def require_parent(run: Run, config: RunConfig) -> None:
    """Refuses to train what could not be judged at the end.

    Raises:
        UserError: the parent is the run itself, or is not there, or its loss is asked for and it is not complete.
    """
    name = config.parent
    if name is None:
        return
    cure = "name another with --set parent=NAME, or leave it out with --set parent=null"
    if name == run.name:
        raise UserError(f"{run.path} has itself as its parent; {cure}")
    parent = run.path.with_name(name)
    if not parent.is_dir():
        raise UserError(f"the parent {parent} is not there; see adaptive runs, then {cure}")
    if not config.gates.no_worse_than_parent:
        return
    found = summary(parent)
    if found.state != "complete":
        raise UserError(
            f"{run.path} is to be no worse than its parent {parent}, which is not complete but {found.state!r}; finish "
            f"it: adaptive train --resume --name {name}; or --set gates.no_worse_than_parent=false"
        )
    if loss_of(found, config.gates) is None:
        raise UserError(
            f"{run.path} is to be no worse than its parent {parent}, which has measured no {config.gates.loss} loss; "
            f"{cure}"
        )
