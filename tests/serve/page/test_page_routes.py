"""The files of the page over HTTP: types, caching, policies, and addresses that lead elsewhere."""

import asyncio
import re
from collections.abc import Iterator, MutableMapping
from typing import Any
from urllib.parse import unquote

import pytest
from support.cases import each

pytest.importorskip("starlette")
pytest.importorskip("httpx")
from starlette.applications import Starlette
from starlette.testclient import TestClient

from adaptive_lm.serve.page.routes import HEADERS, page_files, page_routes


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(Starlette(routes=[*page_routes()])) as client:
        yield client


@each("place", sorted(page_files()))
def test_each_file_has_its_type_a_validator_and_the_policies(client: TestClient, place: str) -> None:
    answer = client.get(f"/page/{place}")
    assert answer.status_code == 200
    endings = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert answer.headers["content-type"].startswith(endings[place.rpartition(".")[2]])
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    assert client.head(f"/page/{place}").headers["content-length"] == str(len(answer.content))
    tag = answer.headers["etag"]
    again = client.get(f"/page/{place}", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(f"/page/{place}", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_page_stands_at_the_root(client: TestClient) -> None:
    assert client.get("/").content == page_files()["index.html"].body
    assert client.post("/").status_code == 405


@each(
    "place",
    [
        "../routes.py",
        "..%2froutes.py",
        "%2e%2e/routes.py",
        "%2e%2e%2f%2e%2e%2fcli.py",
        "modules/../index.html",
        "..%5croutes.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "index.html%00.js",
        "modules",
        "modules/",
        "",
        "INDEX.HTML",
        "../__init__.py",
    ],
)
def test_s49_an_address_never_leads_out_of_the_page(place: str) -> None:
    # Sent to the application itself: a client resolves `..` before it asks.
    raw = f"/page/{place}"
    scope = {"type": "http", "method": "GET", "path": unquote(raw), "raw_path": raw.encode(), "headers": []}
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(Starlette(routes=[*page_routes()])({**scope, "query_string": b""}, receive, send))
    assert sent[0]["status"] == 404
    assert sent[1]["body"] == b"this page has no such file; open / for the page\n"


def test_s59_the_policy_allows_no_inline_code_and_no_other_address() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert {part.split()[0] for part in policy.split("; ")} >= {"default-src", "frame-ancestors", "form-action"}
    assert "default-src 'none'" in policy
    sources = [word for part in policy.split("; ") for word in part.split()[1:]]
    assert set(sources) <= {"'none'", "'self'", "'script'"}


def test_the_page_names_no_other_address_and_reads_no_string_as_html() -> None:
    for place, page_file in page_files().items():
        text = page_file.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|[\"'(]//", text), place
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", text), place
        assert not re.search(r"<style|<script(?![^>]*src=)|\sstyle=|\son\w+=\"", text), place


def test_each_module_that_is_imported_is_there() -> None:
    places = page_files()
    for place, page_file in places.items():
        for target in re.findall(r'^import .* from "(.+)";$', page_file.body.decode(), re.MULTILINE):
            folder = place.split("/")[:-1]
            for part in target.split("/"):
                folder = folder[:-1] if part == ".." else folder if part == "." else [*folder, part]
            assert "/".join(folder) in places, f"{place} imports {target}"
