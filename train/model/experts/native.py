"""The experts in C++ (`src`): compiled on first use, kept in the cache folder, used where they are faster.

N tokens, D width, E experts, F hidden width of one expert, P = F rounded up to 16, R rows = chosen pairs.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ...system.cache_folder import cache_folder

SOURCES = Path(__file__).with_name("src")
COMPILERS = ("g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-fno-exceptions", "-mfma")
SETS = ("f", "bw", "vl", "dq", "bf16")
"""Instruction sets of AVX-512 to compile for."""
BUILD_SECONDS = 60
"""Time after which the compiler is stopped."""
LANES = 16
"""float32 numbers in a vector register."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load the compiled experts, compiling them if needed; None where they cannot be used.

    They need AVX512-BF16 and a compiler. Where there is AMX they are not used: torch's products use it, these do not.
    """
    fitting = platform.machine() in ("x86_64", "AMD64") and torch.cpu._is_avx512_bf16_supported()
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if not fitting or torch.cpu._is_amx_tile_supported() or compiler is None:
        return None
    command = [compiler, *FLAGS, *(f"-mavx512{name}" for name in SETS)]
    texts = [path.read_text(encoding="utf-8") for path in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")])]
    digest = hashlib.sha256("\0".join([*command, *texts]).encode()).hexdigest()[:16]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        path = cache_folder(None) / "compiled" / f"experts-{digest}.so"
        if not path.exists():
            _build(command, path)
        return ctypes.CDLL(str(path))
    return None


def _build(command: list[str], path: Path) -> None:
    """Compile to a temporary file and move it into place, since other processes may compile at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        full = [*command, str(SOURCES / "experts.cpp"), "-o", str(built)]
        subprocess.run(full, check=True, capture_output=True, timeout=BUILD_SECONDS)
        built.replace(path)


def fits(x: Tensor, weights: Tensor, gate_up: Tensor) -> bool:
    """Return whether this code serves the inputs: bf16 x (N, D) on a CPU, the rest float32, D a multiple of 16."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and weights.dtype == gate_up.dtype == torch.float32
        and serves(x.shape[1])
    )


def serves(width: int) -> bool:
    """Return whether this machine's CPU can run experts of width D in bf16 by this code."""
    return width % LANES == 0 and library() is not None


def hidden_width(gate_up: Tensor) -> int:
    """Return 2P, from gate_up (E, D, 2F)."""
    half = gate_up.shape[2] // 2
    return 2 * (-(-half // LANES) * LANES)


def forward(x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Run the experts: -> y (N, D) and, for `backward`, gate|up of each row (R, 2P)."""
    x, weights, selected, gate_up, down = inputs = _contiguous(x, weights, selected, gate_up, down)
    hidden = x.new_empty(int(selected.count_nonzero()), hidden_width(gate_up))
    out = torch.empty_like(x)
    _call("experts_forward", hidden, down, x, (*inputs, out, hidden))
    return out, hidden


def backward(
    gradient: Tensor, x: Tensor, weights: Tensor, selected: Tensor, gate_up: Tensor, down: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights, gate_up and down in their dtypes, from the gradient (N, D) bf16 of y."""
    _, x, weights, selected, gate_up, down, hidden = inputs = _contiguous(
        gradient, x, weights, selected, gate_up, down, hidden
    )
    gradients = torch.empty_like(x), torch.zeros_like(weights), torch.empty_like(gate_up), torch.empty_like(down)
    _call("experts_backward", hidden, down, x, (*inputs, *gradients))
    return gradients


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)


def _call(name: str, hidden: Tensor, down: Tensor, x: Tensor, tensors: tuple[Tensor, ...]) -> None:
    compiled = library()
    assert compiled is not None
    sizes = (*x.shape, *down.shape[:2], len(hidden))  # N, D, E, F, R
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
    compiled[name](*map(ctypes.c_long, sizes), ctypes.c_int(torch.get_num_threads()), *pointers)
