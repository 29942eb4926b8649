"""The kernels for arm64, cross-compiled and run under qemu: the bits of plain C++ on this processor."""

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
CROSS = "aarch64-linux-gnu-g++"
QEMU = "qemu-aarch64"

missing = [tool for tool in ("g++", CROSS, QEMU) if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("adaptive_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def driver(build: ModuleType, compiler: str, folder: Path) -> Path:
    """Compile the kernels and the driver."""
    library, program = folder / "kernels.so", folder / "driver"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", compiler)
        build.compile_library(library, folder / "objects", below=build.SOURCES / "kernels")
    source = Path(__file__).with_name("driver.cpp")
    subprocess.run(
        [compiler, "-std=c++17", "-O1", source, library, "-Wl,-rpath," + str(folder), "-o", program], check=True
    )
    return program


def lines(command: list[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def expected(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return lines([str(driver(build, "g++", tmp_path_factory.mktemp("native"))), "plain"])


@pytest.fixture(scope="module")
def arm64(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [QEMU, "-L", "/usr/aarch64-linux-gnu", str(driver(build, CROSS, tmp_path_factory.mktemp("arm64")))]


@pytest.mark.parametrize("name", ["neondot", "neon", "plain"])
def test_kernels_on_arm64_give_the_bits_of_plain_code_here(arm64: list[str], expected: list[str], name: str) -> None:
    result = lines([*arm64, name])
    assert len(expected) > 300
    assert result == expected


def test_arm64_has_no_kernels_for_x86(arm64: list[str]) -> None:
    assert subprocess.run([*arm64, "avx2"], check=False).returncode == 2
