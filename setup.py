"""Build of the one compiled part: the operators in C++ of `runtime/ops`. `pyproject.toml` holds everything else.

The library is optional. Without a C++ compiler the installation succeeds and the portable graph runs.
"""

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = Path("runtime/ops/src")
TABLE = SOURCES / "kernels/table.cpp"
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
# No processor is assumed (-march) and no result may differ between instruction sets (-ffast-math, contraction to fma).
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden"]
FLAGS += ["-fno-math-errno", "-ffp-contract=off"]
# The intrinsics of GCC 12 for AVX-512 start from values that are undefined on purpose.
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-warning-option", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx2 -mfma -mf16c"
# `table.cpp` is compiled once for each of these; `dispatch.cpp` picks one when it runs.
INSTRUCTION_SETS = {
    "x86_64": {"avx512vnni": AVX512.split(), "avx2": ["-mavx2", "-mfma", "-mf16c"], "plain": []},
    "aarch64": {"neondot": ["-march=armv8.2-a+dotprod"], "neon": [], "plain": []},
}


class BuildError(Exception):
    """The library cannot be built; the message is one line."""


class BuildOperators(build_ext):
    """Compile every C++ file below `runtime/ops/src` into one library; say why where that fails."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the library's path below the folder of the build: it is no module of Python's."""
        return fullname.replace(".", "/") + SUFFIX

    def build_extension(self, ext: Extension) -> None:
        """Compile what is older than its sources, then link."""
        library = Path(self.get_ext_fullpath(ext.name))
        try:
            compile_library(library, Path(self.build_temp), force=bool(self.force))
        except BuildError as error:
            library.unlink(missing_ok=True)  # one that an earlier build left would no longer fit the sources
            print(f"adaptive: operators in C++ not built, the portable graph runs instead: {error}", file=sys.stderr)

    def copy_extensions_to_source(self) -> None:
        """Replace the library beside its sources, for an editable installation."""
        for ext in self.extensions:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def get_outputs(self) -> list[str]:
        """Return the files that were really written."""
        return [output for output in super().get_outputs() if Path(output).exists()]


class BuildWheel(bdist_wheel):
    """Name a wheel after its platform alone: the library does not depend on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, of its ABI and of the platform."""
        return "py3", "none", super().get_tag()[2]


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: $CXX, or the first on the PATH of those that are known to work."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        if shutil.which(command[0]) is None:
            raise BuildError(f"CXX is '{os.environ['CXX']}', and no such compiler was found")
        return command
    if sys.platform == "win32":
        raise BuildError("they are built on Linux and macOS only")
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name) is not None:
            return [name]
    raise BuildError("no C++ compiler (g++ or clang++) was found; install one and repeat the installation")


def run(command: list[str]) -> str:
    """Run a tool and return its output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} did not start: {error}") from None
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
        )
        raise BuildError(f"{command[0]} failed: {lines[0].strip()}")
    return done.stdout


def compile_library(library: Path, objects: Path, force: bool = False, below: Path = SOURCES) -> None:
    """Compile the sources below a folder into `library`; object files in `objects` are reused while they are newer."""
    compiler = find_compiler()
    # last, so that they win; CXXFLAGS is not read, since one -ffast-math in it would change results
    extra = shlex.split(os.environ.get("ADAPTIVE_CXXFLAGS", ""))
    machine = run([*compiler, "-dumpmachine"]).strip()
    architecture = machine.split("-")[0].replace("arm64", "aarch64").replace("amd64", "x86_64")
    instruction_sets = INSTRUCTION_SETS.get(architecture, {"plain": []})
    sources = sorted((ROOT / below).rglob("*.cpp"))
    newest_header = max(header.stat().st_mtime for header in [*(ROOT / SOURCES).rglob("*.h"), Path(__file__)])
    objects.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[Path, Path, list[str]]] = []
    for source in sources:
        name = "_".join(source.relative_to(ROOT / SOURCES).with_suffix("").parts)
        if source == ROOT / TABLE:
            for isa, flags in instruction_sets.items():
                jobs.append((source, objects / f"{name}_{isa}.o", [f"-DADAPTIVE_ISA_{isa}", "-fno-exceptions", *flags]))
        else:
            jobs.append((source, objects / f"{name}.o", []))

    def compile_one(job: tuple[Path, Path, list[str]]) -> None:
        source, target, flags = job
        fresh = target.exists() and target.stat().st_mtime > max(source.stat().st_mtime, newest_header)
        if force or not fresh:
            run([*compiler, *FLAGS, *WARNINGS, *flags, *extra, "-c", str(source), "-o", str(target)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs))
    partial = library.with_name(library.name + ".partial")  # a library that is loaded now keeps its file
    run([*compiler, *FLAGS, *extra, "-shared", *(str(target) for _, target, _ in jobs), "-o", str(partial)])
    partial.replace(library)


if __name__ == "__main__":
    operators = Extension(
        "adaptive_lm.runtime.ops.adaptive_ops",
        sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / SOURCES).rglob("*.cpp")),
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / SOURCES).rglob("*.h")),
        optional=True,
    )
    setup(ext_modules=[operators], cmdclass={"build_ext": BuildOperators, "bdist_wheel": BuildWheel})
