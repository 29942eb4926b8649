"""The table of metrics in docs/guides/operate.md is that of the server."""

import re
from pathlib import Path

from adaptive_lm.runtime.generation.request import Token
from adaptive_lm.serve.observe.telemetry import Telemetry

PAGE = (Path(__file__).parents[3] / "docs/guides/operate.md").read_text("utf-8")
ROW = re.compile(r"^\| `(adaptive_\w+)` \| ([\w, ]*) \| (.+) \|$", re.MULTILINE)
SUFFIX = {"counter": "_total", "info": "_info"}


def test_the_table_has_every_metric_with_its_labels_and_meaning(telemetry: Telemetry, tokens: list[Token]) -> None:
    job = telemetry.job("demo", 6)
    job.started()
    job.token(tokens[0])
    job.ended("eos")
    telemetry.rejected("demo", "memory")
    scope = {"method": "GET", "path": "/", "state": {}}
    telemetry.request_ended(telemetry.request_began(), scope, 200, None)
    expected = {}
    for family in telemetry.metrics.registry.collect():
        if family.name.startswith("adaptive_"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            meaning = family.documentation.rstrip(".") + (" (histogram)" if family.type == "histogram" else "")
            expected[family.name + SUFFIX.get(family.type, "")] = (labels - {"version"}, meaning)
    rows = {name: ({*filter(None, labels.split(", "))}, meaning) for name, labels, meaning in ROW.findall(PAGE)}
    assert rows == expected
