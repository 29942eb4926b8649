"""Runs and their parents: the best run of a lineage, and the losses that a new run is compared with."""

from __future__ import annotations

from pathlib import Path

from ...contract.errors import UserError
from ..config.gates import GatesConfig
from ..config.run_config import RunConfig
from ..run.folder import Run
from .summary import Summary, summary


def best_in_lineage(path: Path) -> Path | None:
    """Return the best run of the lineage that ends in the folder `path`.

    That is the run itself if it is complete and its gates hold, else the best in the lineage of its parent; None if
    there is none.
    """
    seen: set[Path] = set()
    while path not in seen and path.is_dir():
        seen.add(path)
        try:
            run = summary(path)
        except UserError:
            return None
        if run.holds:
            return path
        if run.parent is None:
            return None
        path = path.with_name(run.parent)
    return None


def loss_of(run: Summary, gates: GatesConfig) -> float | None:
    """Return the loss of a run that the gates compare."""
    return run.val_loss if gates.loss == "held_out" else run.loss


def baselines(run: Run, config: RunConfig) -> dict[str, float | None]:
    """Return the losses that `run` may not exceed: those of its parent and of the best run of the parent's lineage.

    Returns:
        Run -> its loss, None if it has none; {} if the gates do not compare the run with its parent.
    """
    if config.parent is None or not config.gates.no_worse_than_parent:
        return {}
    parent = run.path.with_name(config.parent)
    best = best_in_lineage(parent)
    paths = [parent] if best in (None, parent) else [parent, best]
    return {path.name: measured(path, config.gates) for path in paths}


def measured(path: Path, gates: GatesConfig) -> float | None:
    """Return the loss of the run in the folder `path`; None if it is gone, which must not end another run."""
    try:
        return loss_of(summary(path), gates)
    except UserError:
        return None


def require_parent(run: Run, config: RunConfig) -> None:
    """Refuse to train a run that could not be compared with its parent at the end.

    Raises:
        UserError: The parent is the run itself or does not exist, or its loss is needed and it is not complete.
    """
    name = config.parent
    if name is None:
        return
    cure = "name another with --set parent=NAME, or leave it out with --set parent=null"
    if name == run.name:
        raise UserError(f"{run.path} has itself as its parent; {cure}")
    parent = run.path.with_name(name)
    if not parent.is_dir():
        raise UserError(f"the parent {parent} does not exist; see adaptive runs, then {cure}")
    if not config.gates.no_worse_than_parent:
        return
    one = summary(parent)
    must_not = f"{run.path} must not be worse than its parent {parent}"
    if one.state == "diverged":
        raise UserError(f"{must_not}, which diverged; {cure}")
    if one.state != "complete":
        raise UserError(
            f"{must_not}, which is not complete but {one.state!r}; finish it: adaptive train --resume --name {name}; "
            "or --set gates.no_worse_than_parent=false"
        )
    if loss_of(one, config.gates) is None:
        raise UserError(f"{must_not}, which has measured no {config.gates.loss} loss; {cure}")
