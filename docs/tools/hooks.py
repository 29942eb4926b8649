"""What mkdocs does beyond its plugins: the README is the front page, root pages join the site, references are generated."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

from reference import PAGES  # noqa: E402 - mkdocs loads this file by its path, so its folder is not importable before

ROOT = Path(__file__).parents[2]
ROOT_PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
"""Pages at the root of the repository that belong to the site too; those that exist are added to the navigation."""
MARK = re.compile(r"<!-- generated: ([a-z]+) -->")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the root pages to the last part of the navigation, `Project`."""
    assert config.nav is not None
    for name in root_pages():
        config.nav[-1]["Project"].append({name.removesuffix(".md").capitalize(): name})
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
        return PAGES[match[1]]()

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
