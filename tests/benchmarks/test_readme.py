"""The page of the benchmarks names every script, package and target, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
PACKAGES = {path.parent.name for path in FOLDER.glob("*/__init__.py")}


def rows() -> list[list[str]]:
    """List the cells of the rows that begin with a name in a code span."""
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


def test_every_script_has_one_row_with_a_question_and_a_time() -> None:
    table = [row for row in rows() if row[0].endswith(".py`")]
    assert sorted(row[0].strip("`") for row in table) == sorted(path.name for path in FOLDER.glob("*.py"))
    assert [row for row in table if not (len(row) == 4 and row[1].rstrip(".").count("?") and row[2])] == []


def test_a_row_names_the_targets_that_start_its_script() -> None:
    recipes = re.findall(r"^([\w-]+):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for script, *_, targets in (row for row in rows() if row[0].endswith(".py`")):
        starting = {name for name, lines in recipes if f"benchmarks/{script.strip('`')}" in lines}
        assert set(re.findall(r"`([\w-]+)`", targets)) == starting, script


def test_every_package_has_a_row_and_shadows_no_script() -> None:
    assert {row[0].strip("`") for row in rows() if len(row) == 2} == PACKAGES
    assert {path.stem for path in FOLDER.glob("*.py")} & PACKAGES == set()
