"""Names of checkpoints and of their files. Loads no torch, so that a list of runs does not either."""

from pathlib import Path

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
COMPLETE = "complete.json"
"""Written last, with the size and sha256 of the others."""


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder: `step-000100`."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """List the `step-NNNNNN` folders in `folder`, oldest first, good or damaged."""
    paths = [path for path in folder.glob("step-*") if path.name[5:].isdigit() and path.is_dir()]
    return sorted(paths, key=step_of)
