"""Every scenario (T1 to T43, S1 to S63) is named by a test, or by a line of docs/reliability.md that says why not."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TRAIN = TESTS.parent / "train"
BEGIN_PROCESSES = {
    TRAIN / "parallel" / "launch.py",  # the ranks of --nproc, before anything is read; it passes signals on
    TRAIN / "model" / "experts" / "native.py",  # a compiler, which has ended within the first step
}
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text("utf-8")
TESTED, WITHOUT = TEXT.split("## Without a test")
ROW = re.compile(r"^\| ([ST]\d+) \|(.*)\|$", re.MULTILINE)
IDS = [f"T{number}" for number in range(1, 44)] + [f"S{number}" for number in range(1, 64)]


def named_in(path: Path) -> set[str]:
    """Return the ids in a file: in its text, and at the end of the names of its tests, such as `_s21_s24`."""
    text = path.read_text("utf-8")
    return set(re.findall(r"\b[ST]\d+\b", text)) | {f"S{number}" for number in re.findall(r"_s(\d+)(?=[_(])", text)}


def rows(text: str) -> dict[str, str]:
    found = ROW.findall(text)
    assert len(found) == len(dict(found)), "an id has two lines"
    return dict(found)


@pytest.mark.parametrize("number", IDS)
def test_a_scenario_has_a_test_that_names_it_or_a_reason(number: str) -> None:
    tested, without = rows(TESTED), rows(WITHOUT)
    assert (number in tested) != (number in without), "each id has one line, in one of the two tables"
    if number in without:
        assert len(without[number].split()) >= 8, "a reason, and not a word"
        return
    files = re.findall(r"`([\w/]+\.py)`", tested[number])
    assert files, "the line names no file"
    for name in files:
        assert number in named_in(TESTS / name), f"{name} does not name {number}"


def quick_tests_that_name(number: str, path: Path) -> list[str]:
    """List the tests of a file that name an id, by themselves or in its first lines, and are not slow as a whole."""
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    of_all = bool(re.search(rf"\b{number}\b", ast.get_docstring(tree) or ""))
    names = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            slow = any(ast.unparse(mark) in ("pytest.mark.slow", "SLOW") for mark in node.decorator_list)
            said = f"{node.name} {ast.get_source_segment(source, node)}"
            named = re.search(rf"\b{number}\b|_{number.lower()}(?=[_( ])", said)
            if not slow and (named or of_all):
                names.append(node.name)
    return names


@pytest.mark.parametrize("number", sorted(rows(TESTED)))
def test_a_scenario_has_a_test_that_is_not_slow(number: str) -> None:
    """`make test` runs a form of each; the long forms are run by `make test-all`."""
    files = re.findall(r"`([\w/]+\.py)`", rows(TESTED)[number])
    assert any(quick_tests_that_name(number, TESTS / name) for name in files)


def test_what_has_no_test_is_really_named_by_none() -> None:
    """A reason that is no longer true must be removed."""
    files = [path for path in TESTS.rglob("*.py") if path != Path(__file__)]
    named = set().union(*(named_in(path) for path in files))
    assert not named & set(rows(WITHOUT))
    assert set(rows(TESTED)) | set(rows(WITHOUT)) == set(IDS)


def names_of(path: Path) -> Iterator[str]:
    """Return every name that a file imports or reaches by a dot, in full and without its first part."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def test_training_reads_in_its_own_process() -> None:
    """The reason given for loader processes holds: no code starts one."""
    begins = re.compile(r"multiprocessing|torch\.utils\.data|DataLoader|ProcessPool|subprocess|os\.(fork|spawn|popen)")
    found = {path for path in TRAIN.rglob("*.py") if any(begins.search(name) for name in names_of(path))}
    assert found == BEGIN_PROCESSES
