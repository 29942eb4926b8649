"""Find the exported model that a name or a path means."""

import os
from pathlib import Path

from ...contract.errors import UserError
from ...contract.file_names import CONFIG, MANIFEST

RUNS = Path("runs")
PATTERN = f"runs/*/model/{MANIFEST}"


def find_model(name: str | None) -> Path:
    """Return the folder of an exported model.

    Args:
        name: The folder of a model, the folder of a run (its `model` is meant), or the name of a run under `runs/`.
            A path wins over a run of the same name. None means the model exported last under `runs/`.

    Raises:
        UserError: there is no such model. Whether a folder with a manifest is sound, `Manifest.read` checks.
    """
    if name is None:
        exported = _exported()
        if not exported:
            raise UserError(
                f"no exported model under {Path.cwd() / RUNS}: expected {PATTERN}; "
                "make one with: adaptive export, or name one with: --model FOLDER"
            )
        return exported[-1]
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser fails for an unknown user, this keeps `~x`
    places = [path, path / "model"]
    if path.name == name and name not in (".", ".."):
        places.append(RUNS / name / "model")
    place = next((place for place in places if (place / MANIFEST).exists()), None)
    if place is None:
        raise _no_model(path, name)
    return place


def _exported() -> list[Path]:
    """List the exported models under `runs/`, the newest last."""
    return [path.parent for path in sorted(Path().glob(PATTERN), key=lambda path: path.stat().st_mtime)]


def _no_model(path: Path, name: str) -> UserError:
    run = next((run for run in (path, RUNS / name) if (run / CONFIG).is_file()), None)
    if run is not None:
        return UserError(
            f"run {run} is not exported: expected {run / 'model' / MANIFEST}; type: adaptive export {name}"
        )
    problem = f"has no {MANIFEST}" if path.is_dir() else "does not exist"
    exported = ", ".join(sorted(model.parent.name for model in _exported()))
    there = f"exported runs here: {exported}" if exported else "no run is exported here; make one with: adaptive export"
    return UserError(
        f"no exported model at {path}: the folder {problem}, expected a folder with {MANIFEST} or the name of "
        f"an exported run; {there}"
    )
