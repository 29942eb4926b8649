"""The kernels for arm64, cross-compiled and run under qemu: the bits of plain C++ on this processor."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from support.operators.kernels import LIBRARY

ROOT = Path(__file__).resolve().parents[3]
CROSS = "aarch64-linux-gnu-g++"
QEMU = "qemu-aarch64"

fcntl = pytest.importorskip("fcntl", reason="the tools are those of Linux")
missing = [] if LIBRARY.is_file() else [LIBRARY.name]
missing += [tool for tool in ("g++", CROSS, QEMU) if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]


def driver(compiler: str, library: Path, folder: Path) -> str:
    """Compile the program that calls the kernels of a library."""
    source, program = Path(__file__).with_name("driver.cpp"), folder / "driver"
    link = [str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([compiler, "-std=c++17", "-O1", str(source), *link, "-o", str(program)], check=True)
    return str(program)


def lines(command: list[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what plain C++ gives on this processor."""
    return lines([driver("g++", LIBRARY, tmp_path_factory.mktemp("native")), "plain"])


@pytest.fixture(scope="module")
def folder() -> Path:
    """Return the folder of the cross-compiled library and its objects; what is newer than its sources is reused."""
    spec = importlib.util.spec_from_file_location("adaptive_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    folder = ROOT / "build" / "arm64"
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be compiling
        patch.setenv("CXX", CROSS)
        patch.delenv("ADAPTIVE_CXXFLAGS", raising=False)  # what is reused has the usual flags
        build.compile_library(folder / "kernels.so", folder, below=build.SOURCES / "kernels")
    return folder


@pytest.fixture(scope="module")
def arm64(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command that calls the kernels on arm64."""
    program = driver(CROSS, folder / "kernels.so", tmp_path_factory.mktemp("arm64"))
    return [QEMU, "-L", "/usr/aarch64-linux-gnu", program]


@pytest.mark.parametrize("name", ["neondot", "neon", "plain"])
def test_kernels_on_arm64_give_the_bits_of_plain_code_here(arm64: list[str], expected: list[str], name: str) -> None:
    result = lines([*arm64, name])
    assert len(expected) > 300
    assert result == expected


def test_code_for_one_instruction_set_defines_nothing_that_a_linker_could_merge(folder: Path) -> None:
    objects = sorted(folder.glob("kernels_table_*.o"))
    assert len(objects) == 3
    for table in objects:
        symbols = lines(["aarch64-linux-gnu-nm", "--defined-only", "--extern-only", str(table)])
        assert len(symbols) == 1, f"{table.name} defines {symbols}"


def test_arm64_has_no_kernels_for_x86(arm64: list[str]) -> None:
    assert subprocess.run([*arm64, "avx2"], check=False).returncode == 2
