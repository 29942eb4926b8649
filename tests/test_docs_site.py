"""The documentation site builds without a warning, every page can be reached, and every config field is explained."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
HEADINGS = ["## Context", "## Decision", "## Numbers", "## What would change our mind"]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """Import the generator of the reference pages, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_is_one_page_with_a_status_and_the_four_sections(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith(f"# {page.stem[:4]}: ")
    assert re.fullmatch(r"Status: (accepted|superseded by \d{4}).*", lines[2])
    assert [line for line in lines if line.startswith("## ")] == HEADINGS


def test_the_index_of_decisions_has_the_title_and_the_status_of_each_page() -> None:
    index = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    for page in DECISIONS:
        title, _, status = page.read_text(encoding="utf-8").splitlines()[:3]
        number, _, words = title.removeprefix("# ").partition(": ")
        assert f"| {number} | [{words}]({page.name}) | {status.removeprefix('Status: ')} |" in index.splitlines()


def test_every_field_of_the_config_has_a_text(reference: ModuleType) -> None:
    fields = [field for section in reference.config_sections() for field in section.fields]
    assert len(fields) > 100
    assert [field.path for field in fields if not field.text] == []


def test_every_section_of_the_config_has_a_text(reference: ModuleType) -> None:
    assert [section.path for section in reference.config_sections() if not section.text] == []


def test_a_field_shows_its_type_its_range_its_default_and_its_text(reference: ModuleType) -> None:
    page = reference.PAGES["config"]()
    for name, facts in {
        "trainer.batch_size": "*whole number, at least 1, at most 1048576 · default `8`*",
        "trainer.max_seconds": "*number or null, more than 0 · default `120.0`*",
        "trainer.precision": '*`auto` or `fp32` or `bf16` · default `"auto"`*',
        "schedule.random_sparsity": "*[number, number] or null · default `null`*",
        "trainer.sequence_lengths": "*list of (whole number at least 2) · default `[]`*",
    }.items():
        _, _, rest = page.partition(f"### `{name}` {{")
        assert rest, f"{name} is not on the page"
        assert rest.split("\n\n")[1] == facts


def test_a_bound_that_only_guards_a_machine_type_is_left_out(reference: ModuleType) -> None:
    page = reference.PAGES["config"]()
    assert "*whole number or null, at least 1 · default `null`*" in page.partition("### `schedule.warmup_steps` {")[2]
    ranges = re.findall(r"^\*(.+?)(?: · default .*)?\*$", page, re.MULTILINE)
    assert len(ranges) > 100
    assert not re.search(r"\d{10}", "\n".join(ranges))


def test_every_command_and_every_option_is_on_the_page_of_commands(reference: ModuleType) -> None:
    page = reference.PAGES["commands"]()
    for name, command in reference.commands().items():
        part = page.partition(f"## adaptive {name} {{")[2].partition("\n## ")[0]
        for option in (option for parameter in command.params for option in parameter.opts if option.startswith("--")):
            assert option in part, f"{option} of adaptive {name} is missing"
        assert re.search(rf"Example:\n\n```sh\nadaptive {name}", part), f"adaptive {name} has no example"


def test_the_lines_of_a_help_text_that_are_not_wrapped_become_prose_and_code(reference: ModuleType) -> None:
    help_text = "First.\n\n\b\nIn two parts:\n  adaptive a\n  adaptive b\nThen this.\n\n\b\nExample: adaptive c"
    assert reference.help_as_markdown(help_text).split("\n\n") == [
        "First.",
        "In two parts:",
        "```sh\nadaptive a\nadaptive b\n```",
        "Then this.",
        "Example:",
        "```sh\nadaptive c\n```",
    ]


def test_help_does_not_become_markup(reference: ModuleType) -> None:
    assert reference.escaped("a*b <c> `d*e` [x>=1]") == r"a\*b &lt;c> `d*e` \[x>=1\]"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Dead links, dead anchors, pages outside of the navigation and names that mkdocstrings misses are warnings."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    front = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "figures/generation.svg" in front
    assert (tmp_path / "figures" / "generation.svg").is_file()
    assert "adaptive_lm.runtime.load" in (tmp_path / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert not (tmp_path / "tools").exists()
