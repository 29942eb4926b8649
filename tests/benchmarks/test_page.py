"""The page of results: a run replaces its own section, and each script that does so has one."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITTEN = sorted(
    name
    for path in (ROOT / "benchmarks").glob("*.py")
    for name in re.findall(r'replace_section\(.*"benchmarks.md", "(.+?)"', path.read_text(encoding="utf-8"))
)


def test_only_the_section_between_the_markers_is_replaced(tmp_path: Path) -> None:
    section = import_module("page.section")
    begin, end = section.markers("decode")
    other = "\n".join(section.markers("gpu"))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin}\nold\n{end}\n{other}\nafter\n", encoding="utf-8")
    section.replace_section(page, "decode", r"new \1")
    assert page.read_text(encoding="utf-8") == f"before\n{begin}\n\nnew \\1\n{end}\n{other}\nafter\n"
    with pytest.raises(RuntimeError, match="add both"):
        section.replace_section(page, "pays", "new")
    assert "new \\1" in page.read_text(encoding="utf-8")


def test_the_scripts_that_replace_a_section_are_seen() -> None:
    assert WRITTEN == ["decode", "gpu", "pays", "small-models"]


@pytest.mark.parametrize("name", WRITTEN)
def test_the_page_of_results_has_the_section_of_each_script_that_writes_one(name: str, tmp_path: Path) -> None:
    section = import_module("page.section")
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), encoding="utf-8")
    section.replace_section(page, name, "NEW")
    begin, end = section.markers(name)
    assert page.read_text(encoding="utf-8").count(f"{begin}\n\nNEW\n{end}") == 1
