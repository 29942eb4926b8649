"""The text of the benchmark `pays`, split once into what trains, what is scored and what calibrates the dial."""

import json
from pathlib import Path
from typing import NamedTuple

HELD_OUT = 0.05
"""Share of the pages at the end of the file, which stands in random order, that no model trains on."""
CALIBRATION = 0.25
"""Share of these that the dial is calibrated on; the others are scored."""


class Texts(NamedTuple):
    """The three parts of a text, as files."""

    train: Path
    scored: Path
    calibration: Path


def split(pages: Path, folder: Path) -> Texts:
    """Write the parts of `pages` (JSON lines with a field `text`) into `folder`, unless they are there.

    Raises:
        ValueError: There are too few pages to split.
    """
    texts = Texts(folder / "train.jsonl", folder / "scored.jsonl", folder / "calibration.txt")
    if texts.calibration.exists():  # written last
        return texts
    lines = [line for line in pages.read_text("utf-8").split("\n") if line.strip()]
    first = len(lines) - int(HELD_OUT * len(lines))
    second = len(lines) - int(CALIBRATION * (len(lines) - first))
    if not 0 < first < second < len(lines):
        raise ValueError(f"{pages} has {len(lines)} pages, expected at least 80: 5 % of them are held out")
    folder.mkdir(parents=True, exist_ok=True)
    for path, part in ((texts.train, lines[:first]), (texts.scored, lines[first:second])):
        path.write_text("\n".join(part) + "\n", "utf-8")
    calibration = "\n\n".join(json.loads(line)["text"] for line in lines[second:])
    unfinished = texts.calibration.with_suffix(".part")
    unfinished.write_text(calibration, "utf-8")
    unfinished.replace(texts.calibration)
    return texts
