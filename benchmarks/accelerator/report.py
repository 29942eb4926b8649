"""The tables of the GPU benchmark. Standard library alone, as the script that starts the parts."""

from collections.abc import Iterable, Mapping
from typing import Any

from page.table import table

NOTE = """\
Wall clock with the GPU idle before and after, medians and, in brackets, the 5th to 95th percentile. Products of float32
keep 24 bits (TensorFloat32 is off, for peers too). ONNX Runtime runs without CUDA graphs. Ratios to transformers are
medians within rounds, in the same precision."""
Row = Mapping[str, Any]


def markdown(report: Row) -> str:
    """Return the report as Markdown."""
    machine, parts = report["machine"], report["parts"]
    where = machine.get("gpu") or f"no GPU: {machine.get('cpu', 'unknown processor')}, to try the script"
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine.get("memory_bytes") else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("cuda", "torch", "onnxruntime") if machine.get(name))
    head = f"{where}{memory}; {versions}; {machine['date']}; {report.get('seconds', 0):.0f} s"
    head += "; quick" if report["quick"] else ""
    head += "; **tiny models, which say nothing about speed**" if report["small"] else ""
    sections = ["## How fast is it on a GPU?", f"{head}. `make gpu{'-quick' if report['quick'] else ''}`", NOTE]
    for name, write in (("parity", _parity), ("decode", _decode), ("train", _train), ("text", _text)):
        part = parts.get(name)
        if part is None:
            continue
        sections += [write(part)] if part["rows"] else []
        sections += [f"**{name} failed:** {line}" for line in part["failures"]]
    return "\n\n".join(section for section in sections if section) + "\n"


def _spread(values: Iterable[float], form: str = ".2f") -> str:
    median, low, high = values
    return f"{median:{form}} ({low:{form}} to {high:{form}})"


def _parity(part: Row) -> str:
    rows = [
        (r["model"], r["precision"], r["target"], r["tokens"], r["wrong"], r["ties"], f"{r['difference']:.1e}",
         "yes" if r["passed"] else "**no**")
        for r in part["rows"]
    ]  # fmt: skip
    head = (
        "model",
        "precision",
        "target",
        "tokens",
        "wrong decisions",
        "near ties",
        "largest logit difference",
        "equal",
    )
    return "**Parity** with torch on the CPU.\n\n" + table(head, rows)


def _decode(part: Row) -> str:
    rows = [
        (r["what"], r["count"], r["experts"], r["name"], r["precision"], _spread(r["ms"], ".3f"),
         f"{1e3 * (1 if r['what'] == 'decode' else r['count']) / r['ms'][0]:.0f}",
         "-" if r["of_transformers"] is None else f"{r['of_transformers']:.2f}")
        for r in part["rows"]
    ]  # fmt: skip
    head = ("", "tokens", "experts", "", "precision", "ms", "tokens/s", "/ transformers")
    facts = part["facts"]
    first = ", ".join(f"{name} {value:.1e}" for name, value in facts.get("difference", {}).items())
    note = (
        f"**moe-57m**, 2 of 8 experts. Difference of the first logits from torch in fp32, in their deviations: {first}."
    )
    absent = facts.get("transformers")
    return "\n\n".join([note + (f" transformers: {absent}." if absent else ""), table(head, rows)])


def _train(part: Row) -> str:
    rows = [
        (r["name"], "yes" if r["compiled"] else "no", r["precision"], f"{r['batch']} x {r['length']}",
         f"{r['weights'] / 1e6:.0f}M", _spread(r["ms"], ".1f"), f"{r['tokens_per_second']:.0f}", f"{r['tflops']:.1f}",
         "unknown" if r["share_of_peak"] is None else f"{r['share_of_peak']:.0%}", f"{r['warm_up_seconds']:.0f}")
        for r in part["rows"]
    ]  # fmt: skip
    head = ("model", "compiled", "precision", "batch", "weights in use", "ms per step", "tokens/s", "TFLOP/s",
            "share of the peak", "warm-up, s")  # fmt: skip
    return "**A training step**, whole.\n\n" + table(head, rows)


def _text(part: Row) -> str:
    lines = []
    for row in part["rows"]:
        if row["what"] == "train":
            loss = "unknown" if row["val_loss"] is None else f"{row['val_loss']:.3f}"
            lines.append(f"{row['steps']} steps in {row['seconds']:.0f} s, held-out loss {loss}")
        elif row["what"] == "export":
            lines.append(f"exported and checked in {row['seconds']:.0f} s")
        else:
            lines.append("generated on the device")
    return "**A text, from training to generation:** " + "; ".join(lines) + "."
