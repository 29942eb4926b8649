"""The compiled draw of a token gives the tokens of the portable one, with every instruction set of this machine."""

import ctypes
import itertools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptive_lm.runtime.generation.sampling.draw import PortableDraw
from adaptive_lm.runtime.generation.sampling.sampler import Sampler, Sampling
from adaptive_lm.runtime.ops import sampling
from adaptive_lm.runtime.ops.sampling import (
    NO_CHANGES,
    Changes,
    CompiledDraw,
    DrawSettings,
    Settings,
    compiled_function,
)

SOURCE = Path(sampling.__file__).parent / "src" / "sampling" / "sample.cpp"
# The flags of setup.py that decide results.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
]

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sampling") / "sample.so"
    subprocess.run(["c++", *FLAGS, str(SOURCE), "-o", str(path)], check=True)
    return path


@pytest.fixture
def load(library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Load a library whose choice of an instruction set is fresh."""

    def load(kernel: str | None = None) -> Any:
        path = Path(shutil.copy(library, tmp_path / f"{kernel}.so"))
        if kernel is not None:
            monkeypatch.setenv("ADAPTIVE_KERNEL", kernel)
        monkeypatch.setenv(sampling.PATH_VARIABLE, str(path))
        compiled_function.cache_clear()
        return compiled_function()

    yield load
    compiled_function.cache_clear()


def logits_of(kind: str, n: int) -> NDArray[np.float32]:
    random = np.random.default_rng(n)
    normal = random.normal(size=n)
    logits = {
        "peaked": normal * 3,
        "flat": normal * 1e-3,
        "equal": np.zeros(n),
        "steps": np.round(normal * 2),
        "large": normal * 1e4,
        "huge": normal * 1e30,
        "masked": np.where(random.random(n) < 0.5, -np.inf, normal),
    }[kind].astype(np.float32)
    logits[0] = 0
    return logits


def changes_of(kind: str, n: int) -> Changes:
    random = np.random.default_rng(n + 1)
    shifted = random.permutation(n)[: max(n // 3, 1)].astype(np.int32)
    shifts = (random.normal(size=len(shifted)) * 2).astype(np.float32)
    few = np.zeros(32 * (n // 32 + 1), np.uint8)
    few[random.integers(n, size=3)] = 1
    few[0] = 1
    most = 1 - few
    most[n - 1] = 1
    bits = {"few allowed": few, "most allowed": most}.get(kind)
    return Changes(
        seen=np.arange(0, n, 7, dtype=np.int32),
        shifted=shifted if kind != "no shifts" else shifted[:0],
        shifts=shifts if kind != "no shifts" else shifts[:0],
        allowed=None if bits is None else np.packbits(bits, bitorder="little").view(np.uint32),
    )


KINDS = ("peaked", "flat", "equal", "steps", "large", "huge", "masked")
CASES = [*itertools.product(KINDS, (1, 2, 15, 16, 17, 50, 2048, 2049, 32000), ("no shifts",)),
         *itertools.product(("peaked", "steps", "masked"), (1, 17, 50, 2049, 32000),
                            ("shifts", "few allowed", "most allowed"))]  # fmt: skip


@pytest.mark.parametrize("kernel", ["avx512vnni", "avx2", "plain"])
def test_it_draws_the_tokens_of_the_portable_draw(load: Any, kernel: str) -> None:
    function = load(kernel)
    for kind, n, change in CASES:
        logits, changes = logits_of(kind, n), changes_of(change, n)
        few = change != "no shifts" and n > 2048  # fewer combinations, for time
        for top_k, top_p, min_p, penalty in itertools.product(
            {40, n} if few else {1, 40, 1000, n}, (1, 0.9) if few else (1, 0.9, 0.2, 1e-6), (0, 0.05), (1, 1.3)
        ):
            settings = DrawSettings(
                n=n, rate=1.8, top_k=min(top_k, n), top_p=top_p, min_p=min_p, penalty=penalty, seed=5
            )
            compiled, portable = CompiledDraw(function, settings), PortableDraw(settings)
            for _ in range(2):
                assert compiled(logits, changes) == portable(logits, changes), (kind, n, change, settings)


def test_changes_hold_for_one_draw(load: Any) -> None:
    """The arrays of one call are not read in the next."""
    settings = DrawSettings(n=50, rate=1, top_k=50, top_p=1, min_p=0, penalty=1.5, seed=1)
    function = load()
    changed, plain = CompiledDraw(function, settings), CompiledDraw(function, settings)
    logits = logits_of("peaked", 50)
    only = np.uint32([1 << 7, 0])
    assert changed(logits, NO_CHANGES._replace(seen=np.arange(50, dtype=np.int32), allowed=only)) == 7
    plain(logits)
    assert [changed(logits) for _ in range(50)] == [plain(logits) for _ in range(50)]


def test_a_mask_that_is_too_short_is_refused(load: Any) -> None:
    draw = CompiledDraw(load(), DrawSettings(n=50, rate=1, top_k=50, top_p=1, min_p=0, penalty=1, seed=1))
    with pytest.raises(ValueError, match="found a mask of 32 bits, expected at least 50"):
        draw(logits_of("peaked", 50), NO_CHANGES._replace(allowed=np.uint32([1])))


def test_a_sampler_takes_it_and_draws_the_same_tokens(load: Any) -> None:
    assert load() is not None
    logits = np.random.default_rng(0).normal(size=(60, 300)).astype(np.float32)
    settings = Sampling(
        top_k=50, top_p=0.95, repetition_penalty=1.2, frequency_penalty=0.7, presence_penalty=-0.3,
        logit_bias={5: 3.5, 7: -100, 289: 0.1}, seed=7,
    )  # fmt: skip
    samplers = [Sampler(settings, 290, [1, 2], compiled=compiled) for compiled in (True, False)]
    first, second = ([sampler.choose(row) for row in logits] for sampler in samplers)
    assert first == second
    assert len(set(first)) < len(first)  # some were chosen again, so the penalties acted


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_found(load: Any, bad: float) -> None:
    logits = logits_of("peaked", 50)
    logits[33] = bad
    draw = CompiledDraw(load(), DrawSettings(n=50, rate=1, top_k=50, top_p=1, min_p=0, penalty=1, seed=0))
    assert draw(logits) is None


def test_a_library_of_another_version_is_not_used(load: Any) -> None:
    settings = Settings(size=ctypes.sizeof(Settings) - 8)
    assert load()(ctypes.addressof(settings), None) == sampling.OTHER_VERSION


def test_a_library_that_draws_other_tokens_is_not_used(
    load: Any, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "PROBE", (0, *sampling.PROBE[1:]))
    assert load() is None


@pytest.mark.parametrize("content", [None, b"", b"not a library"], ids=["missing", "empty", "text"])
def test_without_a_library_the_portable_draw_is_taken(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "library.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setitem(os.environ, sampling.PATH_VARIABLE, str(path))
    compiled_function.cache_clear()
    assert compiled_function() is None
    compiled_function.cache_clear()
