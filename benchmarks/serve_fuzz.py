"""Send bodies made from the server's own OpenAPI document, and damaged ones; none may give a 500.

    python benchmarks/serve_fuzz.py                      # 100,000 requests on a tiny model: hours (about 16 a second)
    python benchmarks/serve_fuzz.py --requests 2000      # a short form
    python benchmarks/serve_fuzz.py --model runs/demo/model

The application runs in this process; nothing is sent over a network. A failure prints the smallest body that gives it.
Needs the extra `dev` and the package `schemathesis`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the tiny model, and the application in this process

from support.graphs.tiny_graph import write_manifest, write_model  # noqa: E402
from support.serving.served import TEMPLATE, served  # noqa: E402

from adaptive_lm.serve.application.openapi import openapi  # noqa: E402

TELL_EVERY = 5000
"""Requests from one line of progress to the next."""
JSON = {"Content-Type": "application/json"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
VALID = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "input": "a", "content": "a", "tokens": [1]}


class Fuzz:
    """Sends requests, and counts the answers.

    Args:
        client: Of the application.
        document: The OpenAPI document.
    """

    def __init__(self, client: Any, document: dict[str, Any]) -> None:
        self.client, self.document = client, document
        self.statuses: Counter[int] = Counter()
        schema: Any = schemathesis.openapi.from_dict(document)  # its results have a method that their type lacks
        self.operations = [one.ok() for one in schema.get_all_operations()]

    def cases(self) -> st.SearchStrategy[tuple[str, str, bytes | None]]:
        """Draw a method, a path and a body: by the schema, with fields of any value, or any bytes."""
        by_schema = st.one_of([one.as_strategy().map(self.of_schema) for one in self.operations])
        damaged = st.sampled_from([one for one in self.operations if one.method == "post"]).flatmap(self.damaged)
        paths = st.sampled_from([one.path for one in self.operations])
        raw = st.tuples(st.sampled_from(["POST", "PUT", "GET"]), paths, st.binary(max_size=300))
        return st.one_of(by_schema, by_schema, damaged, damaged, raw)

    @staticmethod
    def of_schema(case: Any) -> tuple[str, str, bytes | None]:
        """Return the request of a case of schemathesis, with few new tokens."""
        body = case.body if isinstance(case.body, dict | list | str | int | float | bool | type(None)) else None
        if isinstance(body, dict):
            body = {**body, **{name: 2 for name in ("max_tokens", "max_output_tokens") if body.get(name) != 0}}
        return case.method, case.formatted_path, None if case.method == "GET" else encoded(body)

    def damaged(self, operation: Any) -> st.SearchStrategy[tuple[str, str, bytes | None]]:
        """Draw a valid body in which some fields have any value."""
        names = self.fields(operation.path)
        fields = st.dictionaries(st.sampled_from(names), VALUES, max_size=4)
        return fields.map(lambda drawn: ("POST", operation.path, encoded({**VALID, "max_tokens": 2, **drawn})))

    def fields(self, path: str) -> list[str]:
        """Return the fields of a body."""
        content = self.document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        name = content["schema"]["$ref"].rpartition("/")[2]
        return sorted(self.document["components"]["schemas"][name]["properties"])

    def send(self, case: tuple[str, str, bytes | None]) -> None:
        """Send a request, and check the answer."""
        method, path, body = case
        response = self.client.request(method, path, content=body, headers=JSON)
        self.statuses[response.status_code] += 1
        if (sent := self.statuses.total()) % TELL_EVERY == 0:
            print(f"{sent} requests sent", file=sys.stderr, flush=True)
        assert response.status_code != 500, (case, response.text)
        assert response.status_code < 500 or path == "/v1/embeddings", (case, response.text)
        if response.status_code >= 400 and method != "HEAD":
            assert response.json()["error"]["message"], case
        assert "Traceback" not in response.text, case
        assert '"type":"server_error"' not in response.text, (case, response.text)


def encoded(body: Any) -> bytes:
    """Write JSON; lone surrogates are escaped."""
    return json.dumps(body).encode()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="an exported model; a tiny one if left out")
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = options.model or tiny(Path(place))
        with served(folder) as client:
            fuzz = Fuzz(client, openapi())

            @seed(options.seed)
            @settings(
                max_examples=options.requests,
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )
            @given(fuzz.cases())
            def run(case: tuple[str, str, bytes | None]) -> None:
                fuzz.send(case)

            run()
            assert client.get("/health/ready").status_code == 200
            answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
            assert answer.status_code == 200, answer.text
    counts = ", ".join(f"{status}: {count}" for status, count in sorted(fuzz.statuses.items()))
    print(f"{sum(fuzz.statuses.values())} requests in {time.monotonic() - begin:.0f} s, no 500 ({counts})")


def tiny(place: Path) -> Path:
    """Write the tiny model of the tests."""
    folder = write_model(place / "demo" / "model")
    model: Path = write_manifest(folder, chat_template=TEMPLATE)
    return model


if __name__ == "__main__":
    main()
