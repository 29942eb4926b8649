"""The tables and the plot of the decode benchmark.

Times are medians over rounds, with the 5th and 95th percentile in brackets. With one thread they are CPU times of that
thread, with more wall clock. Ratios are taken within a round.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaptive_lm.runtime.measuring.timing import Distribution
from models.random_weights import SIZES
from page.table import table

NAMES = ("cpu", "portable", "llama.cpp", "genai", "transformers")
"""Participants, in the order of the columns."""
TITLES = {"cpu": "ours, `cpu`", "portable": "ours, `portable`", "llama.cpp": "llama.cpp", "genai": "GenAI"}
OURS = ("cpu", "portable")
PEER = "llama.cpp"
STYLES = {"fp32": "-", "int8": "--", "int4": ":"}
NOTES = """\
Everyone runs the same random weights, vocabulary 32,000, and takes turns in one process. One thread: CPU time of that
thread. More: wall clock. Medians and, in brackets, the 5th to 95th percentile over the rounds. The share of the floor
is the time in which the bytes that the choices need, in a participant's own format, can be read, over the time taken; a
model that fits into the cache is compared with the cache. llama.cpp's types are f32, q8_0 and q4_0 as its own tool
makes them (output head in q6_K); its keys and values are float16, ours too in int8 and int4. GenAI builds the mixture
of experts as LFM2-MoE. Peers that are not installed are left out; the command says how to install them."""
Cell = Mapping[str, Any]


def _times(cell: Cell, row: Mapping[str, Any]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Return seconds, one per round, by the clock of the cell."""
    return np.asarray(row["cpu" if cell["spec"]["threads"] == 1 else "wall"], np.float64)


def _spread(values: Any, form: str) -> str:
    one = Distribution.of(values)
    return f"{one.median:{form}} ({one.p5:{form}} to {one.p95:{form}})"


def _present(cells: Iterable[Cell]) -> list[str]:
    """Name the participants of any of the cells."""
    names = {name for cell in cells for rows in cell["decode"].values() for name in rows}
    return [name for name in NAMES if name in names]


def _title(name: str) -> str:
    return TITLES.get(name, name)


def markdown(report: Mapping[str, Any]) -> str:
    """Return the section of docs/benchmarks.md."""
    machine, cells = report["machine"], report["cells"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items() if " " not in name)
    rounds = cells[0]["spec"]["rounds"]
    parts = [
        "## How fast is a decoded token?",
        f"Measured {machine['date']}, {machine['cores']} cores of {machine['cpu']}. {versions}.\n"
        f"{machine['versions'].get('llama.cpp features', '')}".strip(),
        f"```sh\nmake bench-decode BENCH_FLAGS='--rounds {rounds}'\n```",
        NOTES,
        _sizes(cells),
    ]
    for threads in sorted({cell["spec"]["threads"] for cell in cells}):
        these = [cell for cell in cells if cell["spec"]["threads"] == threads]
        parts += [f"### {threads} thread{'s' * (threads > 1)}", _decode_table(these), *_more(these)]
    parts.append(_alone_table(cells))
    parts.append("![Time of a decoded token over that of llama.cpp](figures/decode.png)")
    return "\n\n".join(part for part in parts if part) + "\n"


def _sizes(cells: Iterable[Cell]) -> str:
    used = {cell["spec"]["model"] for cell in cells}
    rows = []
    for name, size in SIZES.items():
        if name in used:
            shape = f"{size.layers} layers of {size.dim}, {size.heads} heads, {size.kv_heads} for keys"
            ffn = f"{size.experts} experts of {size.hidden}" if size.experts > 1 else f"hidden width {size.hidden}"
            reads = size.weights(2 if size.experts > 1 else 1)
            rows.append([name, f"{shape}, {ffn}", f"{size.weights() / 1e6:.1f}M", f"{reads / 1e6:.1f}M"])
    return table(("model", "shape", "weights", "multiplied per token (2 experts)"), rows)


def _decode_table(cells: list[Cell]) -> str:
    names = _present(cells)
    head = ["model", "precision", "context", *(f"{_title(name)}, ms (of floor)" for name in names)]
    head += [f"{_title(name)} / llama.cpp" for name in names if name in OURS]
    rows = []
    for cell in cells:
        for context, by_name in cell["decode"].items():
            row = [cell["spec"]["model"], cell["spec"]["precision"], context]
            row += [_time(cell, by_name[name]) if name in by_name else "-" for name in names]
            row += [_ratio(cell, by_name, name, PEER) for name in names if name in OURS]
            rows.append(row)
    return table(head, rows)


def _time(cell: Cell, row: Mapping[str, Any]) -> str:
    times = _times(cell, row)
    share = ""
    if row.get("bytes"):
        share = f" ({np.median(row['bytes'] / np.asarray(row['rates']) / times):.0%})"
    return f"{1000 * np.median(times):.2f}{share}"


def _ratio(cell: Cell, rows: Mapping[str, Any], one: str, other: str) -> str:
    if one not in rows or other not in rows:
        return "-"
    return _spread(_times(cell, rows[one]) / _times(cell, rows[other]), ".2f")


def _more(cells: list[Cell]) -> list[str]:
    return [_prefill_table(cells), _experts_table(cells), _layers_table(cells), _batch_table(cells)]


def _prefill_table(cells: list[Cell]) -> str:
    names = _present(cells)
    head = ["model", "precision", "prompt", *(f"{_title(name)}, ms" for name in names)]
    head += [f"{_title(name)} / llama.cpp" for name in names if name in OURS]
    rows = []
    for cell in cells:
        for count, by_name in cell["prefill"].items():
            row = [cell["spec"]["model"], cell["spec"]["precision"], count]
            row += [f"{1000 * np.median(_times(cell, by_name[n])):.1f}" if n in by_name else "-" for n in names]
            row += [_ratio(cell, by_name, name, PEER) for name in names if name in OURS]
            rows.append(row)
    return "**Prompts:**\n\n" + table(head, rows) if rows else ""


def _experts_table(cells: list[Cell]) -> str:
    rows = []
    for cell in cells:
        lanes = cell["experts"]
        for name in NAMES:
            counts = sorted((int(lane.split("/")[1]) for lane in lanes if lane.startswith(f"{name}/")), reverse=True)
            if not counts:
                continue
            most = lanes[f"{name}/{counts[0]}"]
            row = [cell["spec"]["model"], cell["spec"]["precision"], _title(name)]
            for count in counts:
                lane = lanes[f"{name}/{count}"]
                share = np.median(_times(cell, lane) / _times(cell, most))
                row.append(f"{share:.2f} ({lane['bytes'] / most['bytes']:.2f})")
            rows.append(row)
    if not rows:
        return ""
    head = ("model", "precision", "", "8 experts", "4", "2", "1")
    return "**Fewer experts:** time over that of all 8, in brackets the same of the bytes.\n\n" + table(head, rows)


def _layers_table(cells: list[Cell]) -> str:
    rows = []
    for cell in cells:
        lanes = cell["layers"]
        for name in NAMES:
            counts = sorted(int(lane.split("/")[1]) for lane in lanes if lane.startswith(f"{name}/"))
            if len(counts) < 2:
                continue
            none, half = (lanes[f"{name}/{count}"] for count in counts)
            ratio = _times(cell, half) / _times(cell, none)
            row = [cell["spec"]["model"], cell["spec"]["precision"], _title(name), str(counts[1])]
            rows.append([*row, _spread(ratio, ".2f"), f"{half['bytes'] / none['bytes']:.2f}"])
    if not rows:
        return ""
    head = ("model", "precision", "", "layers skipped", "time", "bytes")
    return "**Skipped layers:** time and bytes over those of all layers.\n\n" + table(head, rows)


def _batch_table(cells: list[Cell]) -> str:
    batches = sorted({int(batch) for cell in cells for batch in cell["batch"]})
    rows = []
    for cell in cells:
        single = next(iter(cell["decode"].values()))
        for name in _present(cells):
            own = [cell["batch"].get(str(batch), {}).get(name) for batch in batches]
            if name not in single or not any(own):
                continue
            row = [cell["spec"]["model"], cell["spec"]["precision"], _title(name)]
            row.append(f"{1 / np.median(_times(cell, single[name])):.0f}")
            row += [
                "-" if one is None else f"{batch / np.median(_times(cell, one)):.0f}"
                for batch, one in zip(batches, own, strict=True)
            ]
            rows.append(row)
    if not rows:
        return ""
    head = ("model", "precision", "", "1", *map(str, batches))
    return "**Batches:** tokens per second in all sequences together, by their number.\n\n" + table(head, rows)


def _alone_table(cells: Iterable[Cell]) -> str:
    rows = []
    for cell in cells:
        for name in NAMES:
            if name in cell.get("alone", {}):
                one = cell["alone"][name]
                row = [cell["spec"]["model"], cell["spec"]["precision"], _title(name)]
                row += [f"{one['load_seconds']:.2f}", f"{one['first_token_seconds']:.2f}"]
                row += [f"{one['memory_bytes'] / 2**20:.0f}", str(one.get("nodes", "-"))]
                rows.append(row)
    if not rows:
        return ""
    head = ("model", "precision", "", "load, s", "to the first token, s", "memory, MiB", "nodes per token")
    note = "**Memory and loading**, alone in a process, one thread, prompt of 64: memory is the peak above the imports."
    return f"{note}\n\n{table(head, rows)}"


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw the time of a token over that of llama.cpp, and time by experts beside their bytes, both on one thread."""
    from matplotlib.figure import Figure

    cells = [cell for cell in report["cells"] if cell["spec"]["threads"] == 1]
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [name for name in _present(cells) if name != PEER]
    labels = ["\n".join([*cell["spec"]["model"].split("-"), cell["spec"]["precision"]]) for cell in cells]
    for index, name in enumerate(names):
        places, heights, errors = [], [], []
        for number, cell in enumerate(cells):
            rows = next(iter(cell["decode"].values()))
            if name in rows and PEER in rows:
                one = Distribution.of(_times(cell, rows[name]) / _times(cell, rows[PEER]))
                places.append(number + (index - (len(names) - 1) / 2) * 0.8 / len(names))
                heights.append(one.median)
                errors.append((one.median - one.p5, one.p95 - one.median))
        if places:
            label = _title(name).replace("`", "")
            left.bar(places, heights, 0.8 / len(names), yerr=np.array(errors).T, label=label, capsize=2)
    left.axhline(1, color="black", linewidth=1, linestyle="--")
    left.set_xticks(range(len(cells)), labels, fontsize=7)
    left.set_ylabel("time of a token / llama.cpp's")
    left.set_title("Decode at context 64, one thread", fontsize=10)
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8)
    for cell in cells:
        for name in NAMES:
            lanes = {lane: row for lane, row in cell["experts"].items() if lane.startswith(f"{name}/")}
            if not lanes:
                continue
            counts = sorted((int(lane.split("/")[1]) for lane in lanes), reverse=True)
            most = lanes[f"{name}/{counts[0]}"]
            shares = [lanes[f"{name}/{count}"]["bytes"] / most["bytes"] for count in counts]
            times = [float(np.median(_times(cell, lanes[f"{name}/{n}"]) / _times(cell, most))) for n in counts]
            label = f"{_title(name).replace('`', '')}, {cell['spec']['precision']}"
            look: Any = {"color": f"C{NAMES.index(name)}", "linestyle": STYLES[cell["spec"]["precision"]]}
            right.plot(shares, times, marker="o", markersize=3, linewidth=1, label=label, **look)
    right.plot([0, 1], [0, 1], color="black", linewidth=0.5)
    right.set_xlabel("bytes read / bytes with 8 experts")
    right.set_ylabel("time / time with 8 experts")
    right.set_title("8, 4, 2 and 1 experts", fontsize=10)
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
