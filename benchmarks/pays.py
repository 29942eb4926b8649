"""Does an adaptive model pay? Dense and adaptive models of equal training time: loss against measured decode time.

    python benchmarks/pays.py --work /tmp/pays

On a text that is too large to be memorised, at a size where weights and not operators take the time. Every entrant has
half an hour of one core, **counted in steps**: the time of a step is measured for all in alternation (payoff/steps.py),
and each takes the number of steps that fit. So trainings may run side by side on a loaded machine, and be stopped and
resumed: the result is the same. Compilation, evaluation and saving do not count.

The text is split. The hidden width of the dense model of equal decode time is measured (payoff/twin.py). Training steps
are timed. All are trained (payoff/training.py), exported, calibrated and scored (payoff/measurement.py). The best
adaptive model and the dense ones that are not slower get further seeds. All are timed in alternation. Table, verdict
and plot come last (payoff/report.py).

The work folder keeps every result: the same command goes on where it was stopped.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import yaml

from adaptive_lm.runtime.execution.session import usable_cores
from adaptive_lm.runtime.measuring.machine import cpu_name
from page.section import replace_section
from payoff.entrants import DENSE, ENTRANTS, EQUAL, SIZES, TOP2, recipe, run_name
from payoff.measurement import PRECISIONS, TRAINED, Row, export, rows_of, time_rows
from payoff.report import draw, markdown, rivals
from payoff.steps import Cost, measure
from payoff.text import Texts, split
from payoff.training import Interrupted, Plan, TrainingError, train_all
from payoff.twin import Twin, find, widths

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "cpp-docs" / "pages.jsonl"


class Work:
    """The folder in which a comparison is made, step by step; each result is kept as a file."""

    def __init__(self, folder: Path, data: Path, size: str, rounds: int) -> None:
        self.folder, self.data, self.rounds = folder, data, rounds
        self.size_name, self.size = size, SIZES[size]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.texts: Texts = split(data, folder)

    def tell(self, line: str) -> None:
        """Report progress on stderr."""
        click.echo(f"{datetime.now():%H:%M} {line}", err=True)

    def kept(self, name: str, make: Callable[[], Any], **settings: Any) -> Any:
        """Return the JSON value of a file, or make and keep it.

        Raises:
            click.ClickException: It was made with other settings.
        """
        path = self.folder / f"{name}.json"
        settings = json.loads(json.dumps({"size": self.size._asdict(), "data": str(self.data), **settings}))
        if path.exists():
            content = json.loads(path.read_text("utf-8"))
            if content["settings"] != settings:
                raise click.ClickException(
                    f"{path} was made with other settings ({content['settings']}), expected {settings}; choose another "
                    "--work folder"
                )
            return content["value"]
        value = json.loads(json.dumps(make()))
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps({"settings": settings, "value": value}, indent=1), "utf-8")
        unfinished.replace(path)
        return value

    def write_recipe(self, name: str, content: dict[str, Any]) -> Path:
        """Write a recipe as a file for `adaptive train`."""
        path = self.folder / "recipes" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
        return path

    def twin(self) -> Twin:
        """Find the dense model of equal decode time."""

        def search() -> dict[str, Any]:
            self.tell("which dense model decodes as fast as the adaptive one?")
            dense = {
                width: self.write_recipe(f"width-{width}", recipe(EQUAL, self.size, self.texts, width))
                for width in widths(self.size)
            }
            adaptive_ = self.write_recipe("adaptive", recipe(TOP2, self.size, self.texts))
            return find(self.folder / "twin", self.size, adaptive_, dense, self.rounds)._asdict()

        twin = Twin(**self.kept("twin", search))
        self.tell(f"{EQUAL}: hidden width {twin.hidden}, beside {self.size.hidden} of {DENSE}")
        return twin

    def recipes(self, twin: Twin) -> dict[str, Path]:
        """Write the recipe of every entrant."""
        return {
            entrant: self.write_recipe(run_name(entrant, 0)[:-2], recipe(entrant, self.size, self.texts, twin.hidden))
            for entrant in ENTRANTS
        }

    def costs(self, recipes: dict[str, Path], twin: Twin) -> dict[str, Cost]:
        """Measure the time of a training step of every entrant."""

        def time() -> dict[str, Any]:
            self.tell("how long does a training step take?")
            timed = measure(recipes, self.folder / "steps", self.rounds)
            return {name: cost._asdict() for name, cost in timed.items()}

        costs = {name: Cost(**cost) for name, cost in self.kept("steps", time, hidden=twin.hidden).items()}
        for name, cost in costs.items():
            self.tell(f"{name}: {cost.seconds:.3f} s per step ({cost.low:.3f} to {cost.high:.3f})")
        return costs


def plans(recipes: dict[str, Path], costs: dict[str, Cost], minutes: float, pairs: list[tuple[str, int]]) -> list[Plan]:
    """Return a training for each entrant and seed, with the steps that fit into `minutes` of an idle core."""
    return [
        Plan(
            run_name(entrant, seed), recipes[entrant], seed, max(1, int(60 * minutes / costs[entrant].seconds)),
            costs[entrant].seconds,
        )
        for entrant, seed in pairs
    ]  # fmt: skip


@click.command()
@click.option("--data", type=click.Path(dir_okay=False, path_type=Path), default=DATA,
              help="JSON lines with a field `text`; by default ../shared/data/cpp-docs/pages.jsonl.")  # fmt: skip
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "runs" / "bench-pays",
              help="Folder for runs, models and results; by default runs/bench-pays.")  # fmt: skip
@click.option("--size", type=click.Choice(list(SIZES)), default="10m", show_default=True,
              help="Weights multiplied per token.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
              help="Training of each model: minutes of one idle core, counted in steps.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True,
              help="Seeds of the best adaptive model and of its dense rivals.")  # fmt: skip
@click.option("--only", multiple=True, type=click.Choice(ENTRANTS), help="Only this model; may be repeated.")
@click.option("--jobs", type=click.IntRange(1), default=usable_cores(), help="Trainings at once, one thread each; by "
              "default one per core.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1), default=65536, show_default=True, help="Held-out tokens to score.")
@click.option("--rounds", type=click.IntRange(2), default=12, show_default=True, help="Rounds of each timing.")
def main(
    data: Path, work: Path, size: str, minutes: float, seeds: int, only: tuple[str, ...], jobs: int, tokens: int,
    rounds: int,
) -> None:  # fmt: skip
    """Train, measure and compare; print the table and the verdict."""
    if not data.is_file():
        click.echo(f"skipped: there is no {data}; give a text of JSON lines with: --data FILE", err=True)
        return
    try:
        compare(Work(work.resolve(), data.resolve(), size, rounds), minutes, seeds, only or ENTRANTS, jobs, tokens)
    except TrainingError as error:
        raise click.ClickException(str(error)) from error
    except Interrupted as error:
        click.echo(f"{error}: stopped; the same command goes on", err=True)
        sys.exit(130)


def compare(work: Work, minutes: float, seeds: int, chosen: tuple[str, ...], jobs: int, tokens: int) -> None:
    """Do all steps that are not done, and write the report into the work folder."""
    work.kept("length", lambda: minutes, minutes=minutes)  # steps of another length would be resumed as this one
    twin = work.twin()
    recipes = work.recipes(twin)
    costs = work.costs(recipes, twin)

    def trained(pairs: list[tuple[str, int]]) -> list[Row]:
        train_all(plans(recipes, costs, minutes, pairs), work.folder, jobs, work.tell)
        return scored(work, pairs, tokens, jobs)

    def best_and_rivals() -> tuple[str, ...]:
        work.tell("which are the best?")
        trained_points = [row for row in rows if (row.point, row.precision) == (TRAINED, "int8")]
        time_rows(work.folder, trained_points, "int8", work.rounds)
        return rivals(trained_points)

    first = [entrant for entrant in ENTRANTS if entrant in chosen]
    rows = trained([(entrant, 0) for entrant in first])
    # A name for each choice: some models may be compared first, and the others later in the same folder.
    best = work.kept(
        "best-" + "".join(str(ENTRANTS.index(entrant)) for entrant in first), best_and_rivals, tokens=tokens
    )
    if seeds > 1:
        rows += trained([(entrant, seed) for seed in range(1, seeds) for entrant in best])
    for precision in PRECISIONS:
        work.tell(f"timing all in {precision}")
        time_rows(work.folder, rows, precision, work.rounds)
    report = {
        "machine": machine(),
        "size": work.size_name,
        "text": work.data.name,
        "minutes": minutes,
        "tokens": tokens,
        "tokens_per_step": work.size.batch * work.size.context,
        "twin": twin._asdict(),
        "best": best,
        "costs": {name: cost._asdict() for name, cost in costs.items()},
        "rows": [asdict(row) for row in rows],
    }
    whole = set(chosen) == set(ENTRANTS) and seeds > 1 and (work.size_name, minutes) == ("10m", 30.0)
    publish(work, report, rows, whole)


def publish(work: Work, report: dict[str, Any], rows: list[Row], whole: bool) -> None:
    """Write the report, its plot and all figures; a whole run also replaces those of the documentation."""
    title = f"Equal training time, {work.size_name} size: loss against measured time of a token"
    text = markdown(report, rows)
    (work.folder / "pays.json").write_text(json.dumps(report, indent=1), "utf-8")
    (work.folder / "pays.md").write_text(text, "utf-8")
    draw(rows, work.folder / "pays.png", title)
    click.echo(text)
    work.tell(f"table, figures and plot: pays.md, pays.json and pays.png in {work.folder}")
    if whole:
        draw(rows, ROOT / "docs" / "figures" / "pays.png", title)
        section = f"{text}\n![Held-out loss against the time of a token](figures/pays.png)\n"
        replace_section(ROOT / "docs" / "benchmarks.md", "pays", section)


def scored(work: Work, pairs: list[tuple[str, int]], tokens: int, jobs: int) -> list[Row]:
    """Export, calibrate and score trained models, at every point and in both precisions."""
    work.tell(f"exporting and calibrating {len(pairs)} models")
    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(export, work.folder, entrant, seed, work.texts) for entrant, seed in pairs]:
            done.result()
    rows: list[Row] = []
    for entrant, seed in pairs:
        work.tell(f"{run_name(entrant, seed)}: scoring")
        rows += rows_of(work.folder, entrant, seed, tokens)
    return rows


def machine() -> dict[str, Any]:
    """Describe the processor and its caches."""
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            caches[f"L{level}"] = size
    last = caches.get("L3")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "caches": caches,
        "l3_bytes": int(last.removesuffix("K")) * 1024 if last is not None else None,
    }


if __name__ == "__main__":
    main()
