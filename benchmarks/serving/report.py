"""The tables of the benchmark `serve`."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np


def markdown(report: Mapping[str, Any]) -> str:
    """Return a table of all parts that were measured."""
    machine = report["machine"]
    lines = [f"Measured on {machine['date']}: {machine['cpu']}, {machine['cores']} cores.", ""]
    for part, write in (
        ("ready", _ready), ("throughput", _throughput), ("overhead", _overhead), ("pauses", _pauses),
        ("leaving", _leaving), ("dial", _dial),
    ):  # fmt: skip
        if part in report:
            lines += [*write(report[part]), ""]
    return "\n".join(lines)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return the median with the lowest and the highest value."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _ready(part: Mapping[str, Any]) -> list[str]:
    return [f"Ready: {spread(part['seconds'])} s after its start, model `{part['model']}`."]


def _throughput(part: Mapping[str, Any]) -> list[str]:
    rates = {name: {int(streams): values for streams, values in by.items()} for name, by in part["rates"].items()}
    lines = ["| moe-57m, int8: tokens/s at | " + " | ".join(f"{n} streams" for n in rates["ours"]) + " | most / one |",
             "|---|" + "---|" * (len(rates["ours"]) + 1)]  # fmt: skip
    for name, by in rates.items():
        first, *_, last = by
        gain = [many / one for one, many in zip(by[first], by[last], strict=True)]
        lines.append(f"| {name} | " + " | ".join(spread(v, ".0f") for v in by.values()) + f" | {spread(gain)} |")
    for name in list(rates)[1:]:
        ratios = {
            n: [a / b for a, b in zip(rates["ours"][n], values, strict=True)] for n, values in rates[name].items()
        }
        lines.append(f"| ours / {name} | " + " | ".join(spread(v) for v in ratios.values()) + " | |")
    return lines


def _overhead(part: Mapping[str, Any]) -> list[str]:
    same = "the same texts" if part["same_text"] else "**different texts**"
    return [f"One stream, time of a token beside `adaptive generate`: {spread(part['ratios'])}; {same}."]


def _pauses(part: Mapping[str, Any]) -> list[str]:
    first = part["first_token_ms"]
    text = (
        f"At 80 % load, {part['requests']} requests: between tokens {part['p50_ms']:.1f} ms median, "
        f"{part['p99_ms']:.1f} ms p99 ({part['ratio']:.1f} times); to the first token {first['p50']:.0f} ms median, "
        f"{first['p99']:.0f} ms p99."
    )
    return [text]


def _leaving(part: Mapping[str, Any]) -> list[str]:
    p50, p99 = np.percentile(part["freed_ms"], [50, 99])
    text = (
        f"Slot free after its client left, the question over HTTP included: {p50:.1f} ms median, {p99:.1f} ms p99, "
        f"{max(part['freed_ms']):.1f} ms most; a token takes {part['token_ms']:.1f} ms."
    )
    return [text]


def _dial(part: Mapping[str, Any]) -> list[str]:
    title = (
        f"Model `{part['model']}`, twice the load that it holds in full ({part['capacity']:.0f} tokens/s); an answer "
        f"is in time within {part['limit_ms']:.0f} ms:"
    )
    lines = [
        title,
        "",
        "| dial | answered in time | refused | share of the FLOPs | loss, nats |",
        "|---|---|---|---|---|",
    ]
    for name, rows in part["rows"].items():
        cells = [
            spread([100 * row["in_time"] for row in rows], ".0f") + " %",
            spread([100 * row["refused"] for row in rows], ".0f") + " %",
            *(
                spread([row[key] for row in rows], ".3f") if rows[0][key] is not None else ""
                for key in ("share", "loss")
            ),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines
