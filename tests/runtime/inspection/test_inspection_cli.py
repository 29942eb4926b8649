"""The command `adaptive inspect`: its tables, its JSON, its picture and its page."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from support.graphs.rich_graph import H
from support.graphs.tiny_graph import E, L

from adaptive_lm.export.commands.inspect import path_of
from adaptive_lm.runtime.inspection.figures import Choice
from adaptive_lm.runtime.inspection.inspect import InspectParams, inspect_model
from adaptive_lm.runtime.inspection.plot import plot
from adaptive_lm.runtime.inspection.tables import Sheet, table
from adaptive_lm.serve.cli import group

EVIL = "<script>alert(\"1\")</script> & [bold]x[/bold] $a$ \x1b[31m 'q' é\n"


def run(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(group, ["inspect", str(folder), "--device", "cpu", "--threads", "1", *args])


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """Write a text that would be markup in a page, a terminal or a formula."""
    path = tmp_path / "<b>&evil.txt"
    path.write_text(EVIL * 20)
    return path


class Page(HTMLParser):
    """Parse a page as a browser does."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.titles: list[str] = []
        self.text = ""
        self._inside = False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        found = dict(attrs)
        self.attributes |= found.keys()
        self._inside = self._inside or found.get("class") == "text"
        if tag == "span":
            self.titles.append(found["title"] or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "div"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.text += data


def test_people_read_tables_of_every_kind(rich: Path) -> None:
    result = run(rich, "--tokens", "1000", "--exit-threshold", "0.6")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "1000 tokens of heldout.txt" in lines[0]
    assert lines[1].startswith("experts per layer: ")
    assert "of 4 per token" in lines[1]
    assert lines[2].startswith("dead experts (used by less than 0.001 of a layer's tokens): ")
    (memory,) = [line for line in lines if line.startswith("memory: ")]
    assert re.fullmatch(r"memory: weights [\d.]+ [KM]iB; a text: keys and values up to [\d.]+ KiB", memory)
    for title in ("experts: number", "heads: number", "layers: number", "experts: share", "heads: share",
                  "text classes: ", "windows, in tokens"):  # fmt: skip
        assert any(line.startswith(title) for line in lines), title
    begin = lines.index(next(line for line in lines if line.startswith("experts: share")))
    assert len([line for line in lines[begin + 2 : begin + 2 + L * E] if line.endswith("%")]) == L * E
    assert "word start" in result.stdout
    assert max(map(len, lines)) <= 160
    assert result.stderr == ""


def test_json_has_every_figure_under_its_name(rich: Path) -> None:
    result = run(rich, "--tokens", "700", "--frequent", "5", "--exit-threshold", "0.6", "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert set(content) == {"model", "teacher", "text", "tokens", "unknown_tokens", "thresholds",
                            "executed_flops_share", "dead_below", "mixers", "memory", "groups", "experts",
                            "zero_experts", "heads", "layers", "windows", "saturation"}  # fmt: skip
    assert content["tokens"] == 700
    assert content["thresholds"]["exit_threshold"] == [0.6, 1.0, 1.0]
    assert set(content["groups"]) == {"classes", "positions", "tokens"}
    assert sum(one["tokens"] for one in content["groups"]["classes"]) == 700
    for kind, layers, units in (("experts", L, E), ("heads", L, H), ("layers", 1, L)):
        part: dict[str, Any] = content[kind]
        assert set(part) == {"per_token", "per_token_of", "choices"}
        assert set(part["per_token"]) == {"mean", "deviation", "p5", "median", "p95"}
        assert len(part["choices"]) == layers
        for choice in part["choices"]:
            assert set(choice) == {
                "layer", "tokens", "chosen_by_router", "share", "per_token", "how_many", "entropy",
                "normalised_entropy", "effective", "dead", "coactivation", "strongest_pair", "by",
            }  # fmt: skip
            assert len(choice["share"]) == len(choice["coactivation"]) == units
            assert len(choice["how_many"]) == units + 1
            assert sum(choice["how_many"]) == pytest.approx(1, abs=1e-4)
            tokens = choice["by"]["tokens"]
            assert set(tokens) == {"mutual_information", "specialisation", "by_chance", "groups"}
            assert len(tokens["groups"]) == 6, "five frequent ones, and all others"
            assert set(tokens["groups"][0]) == {"label", "tokens", "share"}
    assert [one["layer"] for one in content["windows"]] == [0, 2]


def test_the_tokens_of_the_tiny_model_decide_its_experts(model: Path, tmp_path: Path) -> None:
    """Its routers are tables of the token: with every token a group of its own, nothing is left to chance."""
    (tmp_path / "text.txt").write_text("abcdefgh" * 100)
    args = ("--data", str(tmp_path / "text.txt"), "--router-top-p", "0.9", "--json")
    content = json.loads(run(model, *args).stdout)
    assert content["heads"] is None
    assert content["windows"] is None
    for choice in content["experts"]["choices"]:
        tokens = choice["by"]["tokens"]
        for one in tokens["groups"]:
            assert set(one["share"]) <= {0, 1, None}
        assert tokens["specialisation"] == pytest.approx(1)
        assert tokens["by_chance"] < 0.1


def test_the_page_shows_the_text_as_text(rich: Path, evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = run(rich, "--data", str(evil), "--html", str(out), "--frequent", "40")
    assert result.exit_code == 0, result.stderr
    assert f"page: {out}" in result.stderr
    content = out.read_text(encoding="utf-8")
    page = Page(content)
    shown = page.text.replace("�", "")
    assert shown == (EVIL * 20).encode()[:400].decode(errors="ignore")[: len(shown)]
    assert len(shown) > 380
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "b", "bold"}
    assert not {name for name in page.attributes if name.startswith("on")} | (page.attributes & {"src", "href"})
    assert ">&lt;</text>" in content, "a label"
    assert "<title>&lt;, expert 0 of layer 0" in content, "and what one sees when pointing at a cell"
    assert "http://" not in content
    assert "https://" not in content
    assert "url(" not in content
    assert "@import" not in content


def test_the_page_has_every_heat_map_and_says_what_each_token_used(rich: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    run(rich, "--tokens", "300", "--html", str(out), "--exit-threshold", "0.6")
    content = out.read_text(encoding="utf-8")
    page = Page(content)
    assert page.tags["svg"] == 3 + 2 * L, "shares of experts, heads and layers, and co-activation of each layer"
    assert page.tags["span"] == len(page.titles) == 300
    assert all("% of dense FLOPs\nlayer 0: experts 0" in title for title in page.titles)
    assert any("layer 1: skipped" in title for title in page.titles)
    assert "prefers-color-scheme: dark" in content
    assert "<title>all tokens, expert 0 of layer 0: 100.0%</title>" in content
    assert "nan" not in content.lower()


def test_the_picture_is_drawn_where_it_was_asked_for(rich: Path, evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps.png"
    result = run(rich, "--data", str(evil), "--plot", str(out), "--frequent", "40")
    assert result.exit_code == 0, result.stderr
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert f"plot: {out}" in result.stderr


def test_a_token_that_looks_like_a_formula_is_drawn_as_it_is(rich: Path, tmp_path: Path) -> None:
    found = inspect_model(rich, InspectParams(tokens=100), device="cpu", threads=1)

    def renamed(choice: Choice) -> Choice:
        splits = [replace(one, labels=("$\\broken{$", *one.labels[1:])) for one in choice.splits]
        return replace(choice, splits=tuple(splits))

    parts = [replace(part, choices=tuple(map(renamed, part.choices))) for part in found.parts]
    plot(replace(found, parts=tuple(parts)), tmp_path / "maps.svg")
    assert (tmp_path / "maps.svg").read_text().startswith("<?xml")


def test_a_token_that_looks_like_markup_is_shown_as_it_is(rich: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("[/]" * 300)
    result = run(rich, "--data", str(tmp_path / "text.txt"), "--head-top-p", "0.3")
    assert result.exit_code == 0, result.stderr
    out = Console(file=StringIO(), width=80)
    out.print(table(Sheet("tokens", ("token", "share"), [("[bold]x[/bold] [/]", "1%")])))
    assert "[bold]x[/bold] [/]" in out.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--tokens", "0"], 2, "found --tokens 0, expected at least 1"),
        (["--frequent", "0"], 2, "found --frequent 0, expected at least 1"),
        (["--dead-below", "2"], 2, "found --dead-below 2.0, expected 0 to 1"),
        (["--experts", "99"], 1, "this model has 4 per layer"),
        (["--compute", "0.5"], 1, "this model is not calibrated"),
        (["--plot", "x.bmp"], 2, "expected a name ending in .png"),
        (["--data", "/nowhere.txt"], 1, "cannot read /nowhere.txt"),
        (["--html", "/nowhere/page.html", "--tokens", "9"], 1, "cannot write /nowhere/page.html"),
        (["--model", "another"], 2, "found two models, expected one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_setting_is_answered_with_one_line(rich: Path, args: list[str], code: int, message: str) -> None:
    result = run(rich, *args)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert path_of("demo") == Path("runs") / "demo"
    assert path_of("other") == Path("other")
    (tmp_path / "demo").mkdir()
    assert path_of("demo") == Path("runs") / "demo", "the run comes first, as in export"
    assert path_of("./demo") == Path("demo")
