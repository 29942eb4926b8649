"""Hooks of mkdocs: README as front page, root pages in the site, generated references."""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

from reference import PAGES  # mkdocs loads this file by its path, so its folder must be on the path first

ROOT = Path(__file__).parents[2]
ROOT_PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
"""Pages at the root of the repository that belong to the site too; those that exist are added to the navigation."""
ROOMS = ("contract", "runtime", "train", "export", "serve")
IMPORTS = tempfile.TemporaryDirectory(prefix="adaptive-docs-")
"""Holds `adaptive_lm` with links to the rooms alone; through `typings/`, mkdocstrings would read `.venv` as well."""
MARK = re.compile(r"<!-- generated: ([a-z]+) -->")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show mkdocstrings the rooms; add the decisions of the index and the root pages to the navigation."""
    package = Path(IMPORTS.name, "adaptive_lm")
    package.mkdir(exist_ok=True)
    for room in ROOMS:
        if (ROOT / room).is_dir() and not (package / room).exists():
            (package / room).symlink_to(ROOT / room, target_is_directory=True)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [IMPORTS.name]
    assert config.nav is not None
    parts = {name: pages for part in config.nav for name, pages in part.items()}
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    parts["Decisions"] += [f"decisions/{page}" for page in re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", index)]
    for name in root_pages():
        parts["Project"].append({name.removesuffix(".md").capitalize(): name})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root pages to the site."""
    for name in root_pages():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=for_site(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is generated where a page asks for it.

    Raises:
        KeyError: a page asks for something that nothing generates.
    """

    def generated(match: re.Match[str]) -> str:
        if match[1] == "readme":
            return for_site((ROOT / "README.md").read_text(encoding="utf-8"))
        text: str = PAGES[match[1]]()
        return text

    return MARK.sub(generated, markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that would load anything from another address.

    Raises:
        ValueError: it would.
    """
    outside = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]*\"[^>]*>", output)
    if outside:
        raise ValueError(f"{page.file.src_uri} loads from outside: {outside}")
    return output


def root_pages() -> list[str]:
    """Return the names of the root pages that exist."""
    return [name for name in ROOT_PAGES if (ROOT / name).is_file()]


def for_site(text: str) -> str:
    """Make the links of a page at the root right for the site: `docs/` is the site's own root.

    A link to a file that is no page of the site becomes its bare text: the site does not know where the code is hosted.
    """

    def link(match: re.Match[str]) -> str:
        words, target, fragment = match[1], match[2], match[3] or ""
        if target.startswith("docs/") and target.endswith(".md"):
            return f"[{words}]({target.removeprefix('docs/')}{fragment})"
        if target in root_pages() or re.match(r"[a-z]+:", target):
            return match[0]
        return words

    return LINK.sub(link, text.replace("](docs/figures/", "](figures/"))
