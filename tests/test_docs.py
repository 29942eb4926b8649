"""The commands of the README and of docs/ work as typed: all are parsed, and those of the `sh` blocks are run.

What installs the project, is `make` itself or takes hours (benchmarks) is checked by name, and run by people.
"""

import functools
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from test_house import LAYERS

from adaptive_lm.serve.cli import group

ROOT = Path(__file__).parent.parent
PROGRAM = str(Path(sys.executable).with_name("adaptive"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SERVED = {ROOT / "docs/guides/serve.md", ROOT / "docs/guides/clients.md"}
"""Their code needs a server; tests/serve/test_guide.py runs it."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def settings(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


SMALL = settings("model.dim=32", "model.num_layers=2", "model.ffn.expert_dim=32", "model.context_length=128")
BRIEF = ["--steps", "2", *settings("trainer.final_eval_tokens=512")]
SHORTER = {
    "train moe-57m": [
        *SMALL,
        *settings("model.num_heads=2", "model.num_kv_heads=1", "model.vocab_size=300"),
    ],
    "train": [*BRIEF, *SMALL],
    "calibrate": ["--tokens", "512", "--repeats", "1", "--new-tokens", "8"],
    "eval": ["--tokens", "256", "--repeats", "1", "--new-tokens", "8"],
    "inspect": ["--tokens", "512"],
    "bench": ["--repeats", "1", "--new-tokens", "8", "--text-tokens", "256"],
}
"""Appended to a command that begins so; the last value of an option counts."""
FORKS = """
import gc, json, os, sys, tempfile
import matplotlib.pyplot, onnx, torch.utils.tensorboard
import adaptive_lm.export.exporter, adaptive_lm.train.training
from adaptive_lm.serve.cli import COMMANDS, group
for name in COMMANDS:
    group.get_command(None, name)
gc.freeze()
for line in sys.stdin:
    with tempfile.TemporaryFile() as output:
        if os.fork() == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            try:
                group(json.loads(line), prog_name="adaptive")
            except SystemExit as done:
                code = done.code or 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.wait()[1])
        output.seek(0)
        print(json.dumps([code, output.read().decode()]), flush=True)
"""
"""Runs the command of each line in a fork of one process that imports everything once: a third of the time.

`adaptive` itself, as installed, is run by the commands with --nproc.
"""


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="its commands are run in forks")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """List the fenced blocks of a page in one language."""
    return [text for found, text in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path) -> list[list[str]]:
    """Every command of the page's sh blocks, split as a shell would; `&&` separates, settings of variables are cut."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    split = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
    return [words[next(i for i, word in enumerate(words) if "=" not in word) :] for words in split if words]


def spans(page: Path) -> list[list[str]]:
    """List the code spans of a page that begin like one of our commands."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [
        span.split() for span in SPAN.findall(text) if re.match(r"(adaptive [a-z]|make \w|python benchmarks/)", span)
    ]


@functools.cache
def command(name: str) -> click.Command:
    with click.Context(group) as context:
        found = group.get_command(context, name)
    assert found is not None, f"there is no command adaptive {name}"
    return found


def options_of(name: str) -> set[str]:
    return {option for each in command(name).params for option in (*each.opts, *each.secondary_opts)} | {"--help"}


def check(words: list[str]) -> None:
    """Fail for a target, an extra, a script, a command or an option that does not exist."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert rest[0] in targets, f"the Makefile has no target {rest[0]}"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        named = re.search(r"\[(.*)\]", " ".join(rest))
        assert named is None or set(named[1].split(",")) <= set(extras), f"unknown extras {named[1]}"
    elif program == "python":
        script = (ROOT / rest[0]).read_text(encoding="utf-8")
        missing = [word for word in rest if word.startswith("--") and word not in script]
        assert not missing, f"{rest[0]} has no {missing}"
    else:
        assert program == "adaptive", f"teach this test to check {program}"
        given = {word.partition("=")[0] for word in rest[1:] if re.match(r"--?[a-z]", word)}
        assert given <= options_of(rest[0]), f"adaptive {rest[0]} has no {given - options_of(rest[0])}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_names_only_commands_and_options_that_exist(page: Path) -> None:
    for words in [*commands(page), *spans(page)]:
        check(words)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_a_command_of_a_page_is_parsed_as_typed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With values: a range, a choice or a type that does not fit is an error of click."""
    monkeypatch.chdir(tmp_path)
    Path("my-text.txt").write_text("text")
    for program, name, *arguments in (words for words in commands(page) if words[0] == "adaptive"):
        with click.Context(group, info_name=program) as parent:
            command(name).make_context(name, arguments, parent=parent)


def test_the_five_minutes_are_five_commands() -> None:
    words = [words for words in commands(ROOT / "README.md") if words[0] == "adaptive"]
    assert [each[1] for each in words] == ["train", "export", "generate", "calibrate", "generate"]


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and the site both make it."""
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower())


def test_every_link_of_the_readme_leads_somewhere() -> None:
    """The site checks its own links; the README's also lead to files that are no page of it."""
    for target in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).is_file(), f"the README links to {path}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{path} has no heading for #{anchor}"


def test_the_architecture_lists_the_layers_that_are_enforced() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = {
        room: [set(layer.split(", ")) for layer in layers.split(" · ")]
        for room, layers in re.findall(r"^- `(\w+)`: (.+)$", page, re.MULTILINE)
    }
    enforced = {room: [set(layer) for layer in layers if layer != ("__main__",)] for room, layers in LAYERS.items()}
    assert listed == enforced


def test_the_architecture_has_a_row_for_each_package() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|"))
    packages = {f"{room}/{path.name}" for room in LAYERS for path in (ROOT / room).iterdir() if any(path.glob("*.py"))}
    assert {package for package in packages if f"`{package}`" not in rows} == set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with `my-text.txt`, and with the files of the guide to generating."""
    folder = tmp_path_factory.mktemp("docs")
    # no line twice: of a text that repeats itself, a decision that stands at its threshold stands there every time
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "nobler", "mind", "slings", "arrows", "fortune"]
    chosen = random.Random(1)
    text = "".join(" ".join(chosen.choices(words, k=9)).capitalize() + ".\n" for _ in range(400))
    (folder / "my-text.txt").write_text(text)
    schemas = [text for text in blocks(ROOT / "docs/guides/generating.md", "json") if '"properties"' in text]
    (folder / "person.json").write_text(schemas[0])
    (folder / "answer.lark").write_text('start: "yes" | "no"')
    return folder


@pytest.fixture(scope="module")
def forks(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the process of FORKS in the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


@pytest.fixture(scope="module")
def workshop(folder: Path, forks: subprocess.Popen[str]) -> Path:
    """Run the README's commands in order, with less training."""
    for arguments in typed(ROOT / "README.md"):
        run_in_fork(forks, arguments)
    return folder


def run_in_fork(process: subprocess.Popen[str], arguments: list[str]) -> None:
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(arguments) + "\n")
    process.stdin.flush()
    code, output = json.loads(process.stdout.readline())
    assert code == 0, f"adaptive {shlex.join(arguments)}\n{output}"
    assert "Traceback" not in output


def typed(page: Path) -> list[list[str]]:
    """List the arguments of the page's `adaptive` commands, in order, with options that shorten each."""
    ours = [words[1:] for words in commands(page) if words[0] == "adaptive"]
    return [[*words, *(SHORTER.get(" ".join(words[:2])) or SHORTER.get(words[0], []))] for words in ours]


def run(command_line: list[str], folder: Path) -> str:
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command_line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command_line)}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if commands(page)], ids=name_of)
def test_the_commands_of_a_page_run_as_typed(page: Path, workshop: Path, forks: subprocess.Popen[str]) -> None:
    for arguments in typed(page):
        if "--nproc" in arguments:  # starts processes of its own, which fork badly
            run([PROGRAM, *arguments], workshop)
        else:
            run_in_fork(forks, arguments)


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page not in SERVED], ids=name_of)
def test_the_python_of_a_page_runs_as_typed(page: Path, workshop: Path) -> None:
    for code in blocks(page, "python"):
        assert run([sys.executable, "-c", code], workshop)


@pytest.mark.slow
@needs_fork
def test_the_page_of_the_exported_model_has_every_input_output_file_and_field(workshop: Path) -> None:
    manifest = json.loads((workshop / "runs/demo/model/manifest.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/explanation/exported-model.md").read_text(encoding="utf-8")
    tables = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    names = [*manifest["inputs"], *manifest["outputs"], *manifest["files"], *manifest]
    assert [name for name in names if f"`{re.sub(r'[.][0-9]+$', '.N', name)}`" not in tables] == []
