"""The lines about an export: where each mechanism runs, and what quantisation costs and saves."""

from collections.abc import Sequence
from typing import Any

from ..contract.file_names import target_files
from ..runtime.format.manifest import Manifest, Target


def executors(target: Target) -> str:
    """Say which operators run each mechanism of a model."""
    by_executor: dict[str, list[str]] = {}
    for mechanism, executor in target.mechanisms.items():
        by_executor.setdefault(executor, []).append(mechanism)
    return "; ".join(f"{executor} run {', '.join(names)}" for executor, names in by_executor.items())


def sizes(manifest: Manifest) -> dict[str, int]:
    """Return the bytes of graph and weights of each target."""
    names = ["portable", *manifest.targets]
    return {
        name: sum(manifest.files[file].bytes for file in target_files(name) if file in manifest.files) for name in names
    }


def quantisation_table(manifest: Manifest, fp32_bytes: int, report: dict[str, Any]) -> list[str]:
    """Return the lines that compare each target with the model in fp32.

    Args:
        manifest: The quantised model.
        fp32_bytes: Bytes of its weights in fp32.
        report: The report of the check.
    """
    checked = {"portable": report} | {n: part for n, part in report.get("targets", {}).items() if part["checked"]}
    figures = {name: part["quantisation"] for name, part in checked.items() if "quantisation" in part}
    if not figures:
        return []
    exact = next(iter(figures.values()))
    rows = [("", "bits per byte", "flipped decisions", "MiB")]
    rows.append(("fp32", f"{exact['bits_per_byte_torch']:.4f}", "-", f"{fp32_bytes / 2**20:.1f}"))
    for name, size in sizes(manifest).items():
        own = figures.get(name)
        bits, flips = (f"{own['bits_per_byte']:.4f}", f"{own['flipped_decisions_share']:.2%}") if own else ("-", "-")
        rows.append((name, bits, flips, f"{size / 2**20:.1f}"))
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in rows)
    ]
