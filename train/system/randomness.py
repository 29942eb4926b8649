"""The states of all random generators of a run, as tensors and JSON: nothing is pickled."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

PREFIX = "random."


def seed_all(seed: int) -> None:
    """Seed the generators of Python, numpy, torch and CUDA."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # libraries draw from the global generator
    torch.manual_seed(seed)


def random_tensors() -> dict[str, Tensor]:
    """Return the states of torch's generators, by name."""
    states = {f"{PREFIX}torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"{PREFIX}cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def random_json() -> dict[str, Any]:
    """Return the states of Python's and numpy's generators."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }


def restore_random(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Restore the states of all generators; those of CUDA devices that are not here are left out."""
    torch.set_rng_state(tensors[f"{PREFIX}torch"])
    for index in range(torch.cuda.device_count()):
        if f"{PREFIX}cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"{PREFIX}cuda.{index}"], index)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
