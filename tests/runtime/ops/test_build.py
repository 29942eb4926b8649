"""The build of the library: optional, and forced by the environment to other kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.operators.kernels import LIBRARY, NAMES, open_library

ROOT = Path(__file__).resolve().parents[3]


def build(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        str(folder),
        "--build-temp",
        str(folder / "objects"),
    ]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def script(folder: Path, text: str) -> str:
    path = folder / "compiler"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="the compiler of the test is a shell script")
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nonexistent", "CXX is '/nonexistent', and no such compiler was found"),
        ("exit 3\n", "compiler failed: no message"),
        (
            '[ "$1" = -dumpmachine ] && echo x86_64 && exit\necho "a.cpp:1: error: bad luck" >&2\nexit 1\n',
            "error: bad luck",
        ),
    ],
    ids=["none", "broken", "refuses"],
)
def test_without_a_working_compiler_the_build_succeeds_and_says_why(compiler: str, reason: str, tmp_path: Path) -> None:
    stale = tmp_path / "adaptive_lm/runtime/ops" / LIBRARY.name
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier build")
    done = build(tmp_path, {"CXX": compiler if compiler.startswith("/") else script(tmp_path, compiler)})
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("adaptive: ")]
    assert len(lines) == 1
    assert lines[0].startswith("adaptive: operators in C++ not built, the portable graph runs instead: ")
    assert lines[0].endswith(reason)
    assert not stale.exists()


def test_without_a_compiler_on_the_path_the_build_names_what_to_install(tmp_path: Path) -> None:
    done = build(tmp_path, {"CXX": "", "PATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler (g++ or clang++) was found; install one and repeat the installation" in done.stderr


@pytest.mark.skipif(not LIBRARY.is_file(), reason=f"{LIBRARY.name} is not built")
@pytest.mark.parametrize("name", [*NAMES, "unknown"])
def test_the_environment_forces_kernels_that_this_processor_has(name: str) -> None:
    program = f"import ctypes; name = ctypes.CDLL({str(LIBRARY)!r}).adaptive_ops_kernel\n"
    program += "name.restype = ctypes.c_char_p; print(name().decode())"
    chosen = {
        forced: subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "ADAPTIVE_KERNEL": forced},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for forced in (name, "")
    }
    has = bool(open_library().adaptive_ops_has(name.encode()))
    assert chosen[name] == (name if has else chosen[""])
    assert chosen[""] in NAMES
