"""The structure of the repository: imports between packages, the packaged files, and help without heavy imports."""

import ast
import fnmatch
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import resolve_name
from pathlib import Path

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from adaptive_lm.serve.cli import COMMANDS, EXTRAS, group

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("contract", "runtime", "train", "export", "serve")
# serve -> runtime <- export -> train, and all of them -> contract
ARROWS = {("serve", "runtime"), ("export", "runtime"), ("export", "train"), *((room, "contract") for room in ROOMS)}
# Inside a room a package imports only those that stand after it; those on one line do not know each other.
LAYERS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "contract": (
        ("text", "files", "streams", "messages", "generation_settings"),
        ("errors", "file_names", "byte_table", "lazy"),
    ),
    "train": (
        ("__main__",),
        ("commands",),
        ("recipe_stages",),
        ("training",),
        ("results",),
        ("loop",),
        ("monitor",),
        ("distillation",),
        ("importing",),
        ("run",),
        ("config",),
        ("optim",),
        ("parallel",),
        ("model", "data"),
        ("system", "recipes"),
    ),
    "runtime": (
        ("commands",),
        ("inspection", "calibration", "conversation", "evaluation"),
        ("measuring", "structured"),
        ("generation",),
        ("chat",),
        ("speculation",),
        ("execution",),
        ("dial",),
        ("format", "terminal", "ops"),
    ),
    "export": (
        ("commands",),
        ("exporter", "inspecting", "outgoing"),
        ("package", "summary", "calibration"),
        ("manifest", "folder"),
        ("proof",),
        ("fused", "source", "costs"),
        ("cuda", "streaming", "mixer_costs", "run", "thresholds"),
        ("model",),
        ("graph",),
    ),
    "serve": (
        ("__main__",),
        ("cli",),
        ("commands",),
        ("replicas",),
        ("application",),
        ("page", "routes"),
        ("protocols",),
        ("scheduler",),
        ("control", "observe"),
        ("settings", "errors"),
    ),
}
FORBIDDEN = {
    "contract": {"numpy", "click"},
    "runtime": {"torch", "onnx", "safetensors"},
    "serve": {"torch", "onnx", "safetensors"},
}
HEAVY = ("torch", "onnx", "onnxruntime", "numpy")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """Return the dotted name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("adaptive_lm", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imports_of(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the absolute dotted names that a file imports anywhere, `import_module("...")` included."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = resolve_name("." * node.level + base, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield resolve_name(str(node.args[0].value), package)


def layer_of(room: str, package: str) -> int:
    """Return the layer of a package in its room, counted from the top."""
    places = [place for place, layer in enumerate(LAYERS[room]) if package in layer]
    assert len(places) == 1, f"{room}/{package} stands in {len(places)} layers of LAYERS, expected 1"
    return places[0]


def upward_imports(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """List the imports of a file from a higher layer of its room, or from another package of the same layer."""
    _, room, *inside = module.split(".")
    if not inside:
        return []  # the __init__ of the room re-exports what it likes
    wrong = set()
    for name in imports_of(ast.parse(source), module, is_package=is_package):
        top, *rest = name.split(".")
        if (top, *rest[:1]) != ("adaptive_lm", room) or len(rest) < 2 or rest[1] == inside[0]:
            continue
        if not (ROOT / room / rest[1]).is_dir() and not (ROOT / room / f"{rest[1]}.py").is_file():
            continue  # a name from the __init__ of the room, no package
        if layer_of(room, rest[1]) <= layer_of(room, inside[0]):
            wrong.add(f"{room}/{inside[0]} imports {rest[1]}, which does not stand after it")
    return sorted(wrong)


def wrong_imports(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """List the imports of a file that break the rules, as sentences."""
    room = module.split(".")[1]
    wrong = set()
    for name in imports_of(ast.parse(source), module, is_package=is_package):
        top, *rest = name.split(".")
        if top in ROOMS:
            wrong.add(f"{room} imports {top} by its bare name, which exists only in the root folder")
        elif top in FORBIDDEN.get(room, ()):
            wrong.add(f"{room} imports {top}")
        elif top == "adaptive_lm" and rest and rest[0] != room and (room, rest[0]) not in ARROWS:
            wrong.add(f"{room} -> {rest[0]}")
    return sorted(wrong)


@pytest.mark.parametrize("find", [wrong_imports, upward_imports], ids=["between rooms", "inside a room"])
def test_imports_run_only_along_the_arrows_and_down_the_layers(find: Callable[..., list[str]]) -> None:
    """All files in one test: a test of its own for each would cost more than reading it."""
    found = {
        str(path.relative_to(ROOT)): find(
            path.read_text(encoding="utf-8"), name_of(path), is_package=path.name == "__init__.py"
        )
        for path in FILES
    }
    assert len(found) > 200
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("adaptive_lm.train.model.routing.router", "from ...loop import trainer"),
        ("adaptive_lm.train.model.routing.router", "from ...data.chat import ChatTemplate"),
        ("adaptive_lm.train.run.checkpoints.best", "def f():\n    from ... import training"),
        ("adaptive_lm.runtime.dial.dial", "from ..generation.engine import load"),
        ("adaptive_lm.export.source", "from adaptive_lm.export.exporter import run_export"),
        ("adaptive_lm.contract.errors", "from .files import write_whole"),
    ],
)
def test_an_import_that_runs_up_is_found(module: str, source: str) -> None:
    assert upward_imports(source, module)


def test_an_import_that_runs_down_is_allowed() -> None:
    assert not upward_imports("from ..run.best import read_best\nfrom . import trainer", "adaptive_lm.train.loop.clock")


def test_every_package_has_a_layer() -> None:
    for path in FILES:
        _, room, *inside = name_of(path).split(".")
        if inside:
            layer_of(room, inside[0])
    for room, layers in LAYERS.items():
        for package in (package for layer in layers for package in layer):
            assert (ROOT / room / package).is_dir() or (ROOT / room / f"{package}.py").is_file(), (
                f"{room}/{package} is gone"
            )


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("adaptive_lm.train.loop", "from ..runtime.manifest import Manifest"),
        ("adaptive_lm.contract.files", "from ..runtime import load"),
        ("adaptive_lm.contract.files", "import numpy as np"),
        ("adaptive_lm.train.model.block", "def f():\n    from ...export import graph"),
        ("adaptive_lm.runtime.generation.engine", "from ... import serve"),
        ("adaptive_lm.runtime.generation.engine", "import torch.nn"),
        ("adaptive_lm.serve.page", "from onnx import helper"),
        ("adaptive_lm.serve.page", "from adaptive_lm.export.graph.builder import build"),
        ("adaptive_lm.serve.page", "import importlib\nimportlib.import_module('..train.loop')"),
        ("adaptive_lm.export.graph.builder", "import train"),
        ("adaptive_lm.export.graph.builder", "from ...serve import cli"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert wrong_imports(source, module)


def test_the_allowed_arrows_are_allowed() -> None:
    assert not wrong_imports(
        "from ..runtime import manifest\nfrom ..train.model import config\nimport torch, onnx", "adaptive_lm.export.a"
    )
    assert not wrong_imports("from ..runtime.engine import Engine\nimport onnxruntime", "adaptive_lm.serve.a")


COMMAND_FILES = sorted(path for path in ROOT.glob("*/commands/*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", COMMAND_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_file_imports_only_what_is_light_at_the_top(path: Path) -> None:
    """Click, the standard library, contract, and the options that commands share, which import no more themselves."""

    def imported_at_the_top(path: Path) -> set[str]:
        # What stands under `if TYPE_CHECKING:` or in a function is no child of the module, and so is free.
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
        top = ast.Module([node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)], [])
        return set(imports_of(top, name_of(path), is_package=False))

    names = imported_at_the_top(path)
    rooms = ("contract", "runtime.commands", "serve.commands", "serve.settings")
    light_modules = tuple(f"adaptive_lm.{name}" for name in rooms)
    light = {name for name in names if name.startswith(light_modules)}
    assert {name.partition(".")[0] for name in names - light} - {"click"} <= sys.stdlib_module_names


def test_every_package_is_listed() -> None:
    found = {name_of(path) for path in FILES if path.name == "__init__.py"}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {name_of(path.parent / "__init__.py") for path in FILES}
    assert folders <= found, "a folder with Python files in it has no __init__.py"


def test_a_folder_of_a_room_holds_at_most_fourteen_python_files() -> None:
    """One that holds more has a second noun in it: give that one a folder of its own (decision 0023)."""
    sizes = Counter(path.parent.relative_to(ROOT).as_posix() for path in FILES)
    assert {folder: size for folder, size in sizes.items() if size > 14} == {}


def test_every_file_in_the_rooms_is_packaged() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    for path in files:
        # setup.py, which compiles the operators, puts the library where it belongs
        if path.suffix in {".py", ".pyc"} or path.name.startswith(".") or path.stem == "adaptive_ops":
            continue
        folder = next(parent for parent in path.parents if (parent / "__init__.py").exists())
        wanted = [*patterns["*"], *patterns.get(name_of(folder / "__init__.py"), [])]
        inside = path.relative_to(folder).as_posix()
        assert any(fnmatch.fnmatch(inside, pattern) for pattern in wanted), (
            f"{path.relative_to(ROOT)} would not be installed"
        )


def test_the_root_is_the_package_and_each_room_is_typed() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert all((ROOT / room / "py.typed").is_file() for room in ROOMS)
    assert (ROOT / "typings" / "adaptive_lm").samefile(ROOT)


def requirements(*extras: str) -> list[Requirement]:
    lists = [
        PROJECT["project"]["dependencies"],
        *(PROJECT["project"]["optional-dependencies"][extra] for extra in extras),
    ]
    return [
        requirement for texts in lists for requirement in map(Requirement, texts) if requirement.name != "adaptive-lm"
    ]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line.strip() and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned), (
        "only exact pins, no options and no addresses"
    )
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in pinned)}


def test_what_make_installs_is_pinned_within_its_range() -> None:
    pinned = pins()
    assert pinned["torch"] == "2.13.0"
    for requirement in requirements("plot", "train", "dev"):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_base_install_has_no_torch_and_no_onnx() -> None:
    assert not {requirement.name for requirement in requirements()} & {"torch", "onnx", "safetensors", "tensorboard"}


def distribution_of(library: str) -> str:
    """Return the name of the distribution that installs a top-level module."""
    return {"opentelemetry": "opentelemetry-sdk", "yaml": "pyyaml"}.get(library, canonicalize_name(library))


@pytest.mark.parametrize(
    ("room", "extras"),
    [
        ("contract", []),
        ("runtime", ["plot", "structured", "chat", "eval", "hf"]),
        ("serve", ["serve", "otel", "ray"]),
        ("train", ["train", "plot", "hf", "augment", "trackers", "import"]),
        ("export", ["train", "import"]),
    ],
)
def test_a_room_imports_only_what_its_installation_brings(room: str, extras: list[str]) -> None:
    imported = {
        name.partition(".")[0]
        for path in FILES
        if path.relative_to(ROOT).parts[0] == room
        for name in imports_of(
            ast.parse(path.read_text(encoding="utf-8")), name_of(path), is_package=path.name == "__init__.py"
        )
    }
    foreign = {distribution_of(library) for library in imported - {"adaptive_lm"} - set(sys.stdlib_module_names)}
    assert foreign <= {requirement.name for requirement in requirements(*extras)}


@pytest.mark.parametrize(("library", "extra"), EXTRAS.items())
def test_a_missing_library_is_in_the_extra_that_the_error_names(library: str, extra: str) -> None:
    assert distribution_of(library) in {requirement.name for requirement in requirements(extra)}


def heavy_after(code: str) -> list[str]:
    """Return the heavy libraries that a fresh Python has loaded after running `code`."""
    report = f"""
import sys
try:
    {code}
except SystemExit as end:
    assert not end.code
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    loaded: list[str] = ast.literal_eval(done.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_no_heavy_library(command: str) -> None:
    arguments = [*shlex.split(command), "--help"]
    assert not heavy_after(f"from adaptive_lm.serve.cli import group; group({arguments})")


@pytest.mark.parametrize(
    "typed",
    [
        "train --print-config",
        "train quickstart --print-config --set model.dim=64",
        "train science-qa --stage 2 --print-config",
        "train --data x.txt --print-config",
        "train --print-config --nproc 2",
        "runs --json",
        "runs",
    ],
)
def test_a_config_and_a_list_of_runs_load_no_torch(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "a"
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / "config.yaml").write_text("trainer: {steps: 1}\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert "torch" not in heavy_after(f"from adaptive_lm.serve.cli import group; group({typed.split()})")


def test_the_runtime_loads_without_torch_and_onnx() -> None:
    loaded = heavy_after("import adaptive_lm.runtime; from adaptive_lm.runtime import load")
    assert not {"torch", "onnx"} & set(loaded)


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    def seconds() -> float:
        before = os.times()
        subprocess.run(
            [sys.executable, "-c", "from adaptive_lm.serve.cli import main; main()", "--help"],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        after = os.times()
        # Processor time of the child: a neighbour on this machine makes it wait, which is not the fault of the command.
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < 0.3


def help_of(command: str) -> str:
    arguments = [*shlex.split(command), "--help"]
    done = subprocess.run(
        [sys.executable, "-m", "adaptive_lm.serve", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def parse(line: str) -> None:
    """Let click read a line as if it were typed, without running it: unknown options and bad values are errors."""
    program, *arguments = shlex.split(line)
    assert program == "adaptive"
    with click.Context(group, info_name=program) as parent:
        name, command, rest = group.resolve_command(parent, arguments)
        assert command is not None
        with command.make_context(name, rest, parent=parent):
            pass


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_ends_with_an_example_that_works_as_typed(command: str) -> None:
    _, found, example = help_of(command).rpartition("Example:")
    assert found, "no 'Example:' at the end of the help"
    line = example.strip()
    assert "\n" not in line, "wrapped: a line that breaks cannot be copied; `\\b` before the paragraph keeps it whole"
    assert line.startswith(f"adaptive {command}")
    parse(line)


@pytest.mark.parametrize(
    ("target", "commands"),
    [("demo", ["train", "export", "generate", "bench"]), ("demo-chat", ["import", "export", "generate", "bench"])],
)
def test_the_commands_of_a_demo_can_be_typed(target: str, commands: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition(f"\n{target}:")[2].partition("\n\n")[0]
    lines = re.findall(r"^\t\$\(BIN\)/(adaptive .*)$", recipe, flags=re.MULTILINE)
    assert [line.split()[1] for line in lines] == commands
    for line in lines:
        parse(line.replace("$(NAME)", "demo").replace("$(SMOLLM)", "model.gguf"))


def pages_of(nav: object) -> set[str]:
    """All pages of a navigation, as mkdocs writes one: nested lists and mappings with paths as leaves."""
    if isinstance(nav, str):
        return {nav}
    children = nav.values() if isinstance(nav, dict) else nav
    assert isinstance(children, (list, type({}.values())))
    return set().union(*map(pages_of, children))


def test_every_page_is_in_the_navigation_or_in_the_index_of_decisions() -> None:
    nav = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", index)
    assert len(rows) == len(set(rows)), "a decision stands in the index twice"
    nav |= {f"decisions/{name}" for name in rows}
    assert {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} == nav
