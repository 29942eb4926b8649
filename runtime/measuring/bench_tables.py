"""A benchmark for the terminal: a few lines, and a table and a plot of the sweep."""

from pathlib import Path
from typing import Any

from rich.table import Table

from ..terminal.text import console, size

Figures = dict[str, Any]


def show(result: Figures) -> None:
    """Print the figures on stdout."""
    out = console(stderr=False)
    for line in lines(result):
        out.print(line, markup=False)
    if "contexts" in result:
        out.print()
        out.print(contexts_table(result["contexts"]), soft_wrap=False)
    if "sweep" in result:
        out.print()
        out.print(sweep_table(result["sweep"], heads=result["model"]["routes_heads"]), soft_wrap=False)


def lines(result: Figures) -> list[str]:
    """Format one line each for the machine, the model, the prompt, decoding and the memory floor."""
    machine, model, settings = result["machine"], result["model"], result["settings"]
    prefill, decode = result["prefill"], result["decode"]
    prompt = prefill["milliseconds"]
    speed, bandwidth = decode["milliseconds_per_token"], decode["memory_bandwidth"]
    experts = f"{model['num_layers']} layers of {model['dim']} · {model['num_experts']} experts"
    states = [f"states {size(model['state_bytes'])} per text"] if model["state_bytes"] else []
    memory = f"loaded in {model['load_seconds']:.2f} s · peak memory {size(model['peak_memory_bytes'])}"
    heads = f"{decode['heads_per_token']:.2f} heads, " if model["routes_heads"] else ""
    used = f"{decode['experts_per_token']:.2f} experts, {heads}{decode['layers_per_token']:.2f} layers"
    read = size(decode["bytes_per_token"])
    rate, cores = bandwidth["bytes_per_second"] / 1e9, f"{machine['threads']} of {machine['cores']} cores"
    parts = (
        ("machine", machine["cpu"], cores, machine["device"], f"onnxruntime {machine['onnxruntime']}"),
        (
            "model",
            model["folder"],
            model["precision"],
            graph_name(result),
            experts,
            size(model["file_bytes"]),
            *states,
            memory,
        ),
        (
            "prefill",
            f"{prefill['tokens_per_second']:.0f} tokens/s",
            f"{prefill['tokens']} tokens in {prompt['median']:.2f} ms ({_range(prompt)})",
        ),
        (
            "decode",
            f"{decode['tokens_per_second']:.1f} tokens/s",
            f"{speed['median']:.3f} ms per token ({_range(speed)})",
            f"spread of {settings['repeats']} rounds {decode['spread']:.1%}",
            f"{used}, {decode['executed_flops_share']:.1%} of dense FLOPs",
            f"{result['nodes_per_token']} nodes",
        ),
        (
            "floor",
            f"{decode['memory_floor_milliseconds']:.3f} ms to read {read} at {rate:.1f} GB/s",
            f"{decode['memory_floor_share']:.0%} of it reached",
        ),
    )
    return [f"{name:8} {' · '.join(rest)}" for name, *rest in parts]


def graph_name(model: Figures) -> str:
    """Name the target that ran, and its kernels."""
    return f"target {model['target']}" + (f" ({model['kernel']})" if model["kernel"] else "")


def show_comparison(result: Figures) -> None:
    """Print the figures of a comparison on stdout."""
    out = console(stderr=False)
    machine, settings = result["machine"], result["settings"]
    out.print(f"machine  {machine['cpu']} · {machine['cores']} cores · {machine['device']}", markup=False)
    tokens = f"{settings['prompt_tokens']} and {settings['new_tokens']} new ones from {settings['tokens_from']}"
    out.print(f"tokens   {tokens} · {settings['repeats']} rounds", markup=False)
    for phase, unit in (("decode", "ms per token"), ("prefill", "ms per prompt")):
        out.print()
        out.print(comparison_table(result["models"], phase, unit), soft_wrap=False)


def comparison_table(models: list[Figures], phase: str, unit: str) -> Table:
    """Build a table with a row per model; its ratios are to the first one."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(phase, no_wrap=True)
    table.add_column("graph", no_wrap=True)
    for name in (unit, "p5 to p95", "CPU ms", "ratio", "p5 to p95", "CPU ratio", "nodes"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in models:
        wall, ratio, cpu_ratio = model[phase]["milliseconds"], model["ratio"][phase], model["ratio"][f"{phase}_cpu"]
        table.add_row(
            model["name"],
            f"{model['precision']}, {graph_name(model)}",
            f"{wall['median']:.3f}",
            f"{wall['p5']:.3f} - {wall['p95']:.3f}",
            f"{model[phase]['cpu_milliseconds']['median']:.3f}",
            f"{ratio['median']:.2f}",
            f"{ratio['p5']:.2f} - {ratio['p95']:.2f}",
            f"{cpu_ratio['median']:.2f}",
            str(model["nodes_per_token"]) if phase == "decode" else "",
        )
    return table


def contexts_table(contexts: list[Figures]) -> Table:
    """Build a table with a row per length of text; its ratios are to the first one."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("context", "ms per token", "p5 to p95", "ratio", "p5 to p95", "read", "KV cache", "states"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in contexts:
        speed, ratio = one["milliseconds_per_token"], one["ratio"]
        table.add_row(
            str(one["context"]),
            f"{speed['median']:.3f}",
            f"{speed['p5']:.3f} - {speed['p95']:.3f}",
            f"{ratio['median']:.2f}",
            f"{ratio['p5']:.2f} - {ratio['p95']:.2f}",
            size(one["bytes_per_token"]),
            size(one["cache_bytes"]),
            size(one["state_bytes"]),
        )
    return table


def sweep_table(points: list[Figures], *, heads: bool) -> Table:
    """Build a table with a row per point; `heads` adds the number of heads."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("point", no_wrap=True)
    for name in (
        "experts",
        *["heads"] * heads,
        "layers",
        "theoretical",
        "executed",
        "measured",
        "ms per token",
        "p5 to p95",
        "bits/byte",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for point in points:
        speed, bits = point["milliseconds_per_token"], point["bits_per_byte"]
        table.add_row(
            point["name"],
            f"{point['experts_per_token']:.2f}",
            *[f"{point['heads_per_token']:.2f}"] * heads,
            f"{point['layers_per_token']:.2f}",
            f"{point['theoretical_share']:.1%}",
            f"{point['executed_share']:.1%}",
            f"{point['measured_share']:.1%}",
            f"{speed['median']:.3f}",
            f"{speed['p5']:.3f} - {speed['p95']:.3f}",
            "-" if bits is None else f"{bits:.4f}",
        )
    return table


def plot(result: Figures, path: Path) -> None:
    """Draw quality over measured time, and the three shares of each point, to `path` in the format of its suffix.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: `path` cannot be written.
    """
    import matplotlib  # optional: the figures are printed without it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = result["sweep"]
    has_quality = all(point["bits_per_byte"] is not None for point in points)
    figure, panels = pyplot.subplots(1, 2 if has_quality else 1, figsize=(11 if has_quality else 6, 4.5), squeeze=False)
    walks: dict[str, list[Figures]] = {}
    for point in points:
        walks.setdefault(point["name"].split()[0], []).append(point)
    if has_quality:
        panel = panels[0][0]
        for walk, members in walks.items():
            speeds = [point["milliseconds_per_token"] for point in members]
            middle = [speed["median"] for speed in speeds]
            bars = [[s["median"] - s["p5"] for s in speeds], [s["p95"] - s["median"] for s in speeds]]
            bits = [point["bits_per_byte"] for point in members]
            panel.errorbar(middle, bits, xerr=bars, marker="o", markersize=4, capsize=2, linewidth=1, label=walk)
            if len(members) > 1:
                for point, x, y in zip(members, middle, bits, strict=True):
                    panel.annotate(
                        point["name"].split()[1], (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8
                    )
        # The slowest tokens of a busy machine would squash everything else: their bars are cut, the table has them.
        slowest = max(point["milliseconds_per_token"]["median"] for point in points)
        panel.set(xlim=(0, 1.4 * slowest), xlabel="measured ms per token (median, p5 to p95)", ylabel="bits per byte")
        panel.legend()
    panel = panels[0][-1]
    ordered = sorted(points, key=lambda point: -point["executed_share"])
    for share in ("theoretical_share", "executed_share", "measured_share"):
        panel.plot([100 * point[share] for point in ordered], marker="o", markersize=4, label=share.split("_")[0])
    panel.set_xticks(range(len(ordered)), [point["name"] for point in ordered], rotation=60, ha="right", fontsize=8)
    panel.set(ylabel="% of the whole model", ylim=(0, None))
    panel.legend()
    threads = result["machine"]["threads"]
    title = f"{result['model']['folder']}, {result['machine']['cpu']}, {threads} thread{'s' * (threads > 1)}"
    figure.suptitle(title)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120)
    finally:
        pyplot.close(figure)


def _range(values: Figures) -> str:
    return f"p5 {values['p5']:.3f}, p95 {values['p95']:.3f}"
