"""Augmentation of a small text: held-out loss with and without each kind of `data.augment`, over several seeds.

    python benchmarks/augmentation.py --seeds 3

Three tasks, each a few minutes on one core. `prose`: the first 60,000 characters of Python's language reference, read
about 25 times. `questions`: 200 of the built-in questions and answers, the last tenth held out. `wordings`: all of the
same 200 for training, and the same questions in wordings that no template has for evaluation. The table shows the loss
at the end of a run and the lowest on the way. The model is dense, 2 layers of width 64: texts are compared here, not
models.
"""

import io
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import click
from rich.console import Console

from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.data.builtin import builtin_records
from adaptive_lm.train.run.folder import Run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress
from adaptive_lm.train.training import begin

CHARACTERS = 60_000
RECORDS = 200
NEW_WORDINGS = (
    "Do you happen to know this? {question}",
    "{question} Answer in a sentence.",
    "My teacher asks: {question}",
)
SYNONYMS = {
    "large": ["big", "huge"], "big": ["large", "great"], "small": ["little", "tiny"], "famous": ["known", "great"],
    "important": ["major", "main"], "make": ["form", "create"], "made": ["formed", "created"], "use": ["need"],
    "used": ["needed", "employed"], "show": ["give", "tell"], "find": ["see", "get"], "found": ["seen", "met"],
    "begin": ["start"], "began": ["started"], "many": ["several", "numerous"], "first": ["earliest", "initial"],
    "object": ["thing", "item"], "value": ["result", "content"], "name": ["word", "label"], "function": ["routine"],
    "called": ["named", "invoked"], "defined": ["given", "set"], "following": ["next", "below"], "given": ["stated"],
    "statement": ["command", "line"], "expression": ["formula", "term"], "method": ["routine", "function"],
    "string": ["text"], "list": ["series"], "argument": ["parameter"], "world": ["earth", "globe"],
    "people": ["persons"], "different": ["other", "various"], "country": ["nation", "land"], "city": ["town"],
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "word dropout 0.1": {"word_dropout": 0.1},
    "word dropout 0.2": {"word_dropout": 0.2},
    "span shuffle 0.3": {"span_shuffle": 0.3},
    "synonyms 0.3": {"synonyms": "TABLE", "synonym_share": 0.3},
    "templates": {"templates": "builtin"},
    "templates, dropout 0.1": {"templates": "builtin", "word_dropout": 0.1},
}
TASKS = ("prose", "questions", "wordings")
BASE: dict[str, Any] = {
    "tokenizer": {"kind": "bpe", "vocab_size": 512},
    "model": {
        "context_length": 64, "dim": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2,
        "ffn": {"routing": "dense", "dim": 172},
    },
    "trainer": {
        "max_seconds": None, "batch_size": 16, "eval_every": 40, "eval_tokens": 100_000, "threads": 1,
        "final_eval_tokens": None, "checkpoint_every": 100_000, "log_every": 40, "tensorboard": False,
    },
}  # fmt: skip


def write_texts(folder: Path) -> None:
    """Write the texts of the tasks, and the table of synonyms."""
    prose = "\n\n".join(str(one) for one in builtin_records("python-docs"))[:CHARACTERS]
    (folder / "prose.txt").write_text(prose, encoding="utf-8")
    records: list[Any] = list(builtin_records("facts"))[:RECORDS]
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    asked = [
        {**one, "prompt": NEW_WORDINGS[number % len(NEW_WORDINGS)].replace("{question}", one["prompt"])}
        for number, one in enumerate(records)
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked), encoding="utf-8")
    (folder / "table.json").write_text(json.dumps(SYNONYMS), encoding="utf-8")


def train_losses(folder: Path, task: str, kind: str, seed: int, steps: int) -> tuple[float, float]:
    """Train a run; return its held-out loss at the end and the lowest on the way, in nats per scored token."""
    augment = {name: str(folder / "table.json") if value == "TABLE" else value for name, value in KINDS[kind].items()}
    data: dict[str, Any] = {"augment": augment, "cache_dir": str(folder / "cache")}
    if task == "prose":
        data |= {"sources": [str(folder / "prose.txt")]}
    else:
        data |= {"sources": [str(folder / "records.jsonl")], "pack": "documents", "loss_on": "answers"}
    if task == "wordings":
        data |= {"val": str(folder / "asked.jsonl")}
    # one vocabulary for all kinds of a task, so that their losses are over the same tokens
    tokenizer = folder / f"{task}.tokenizer.json"
    over: dict[str, Any] = {"data": data, "trainer": {"seed": seed, "steps": steps}}
    if tokenizer.exists():
        over["tokenizer"] = {"kind": str(tokenizer), "vocab_size": None}
    run = Run(folder / "runs" / f"{task}-{kind.replace(' ', '-').replace(',', '')}-{seed}")
    begin(make_config(BASE, [over]), run, display=Progress(Console(file=io.StringIO())))
    if not tokenizer.exists():
        tokenizer.write_text((run.path / "tokenizer.json").read_text(encoding="utf-8"), encoding="utf-8")
    losses = [one["val_loss"] for one in read_metrics(run.path / "metrics.jsonl") if one.get("val_loss") is not None]
    return losses[-1], min(losses)


def cell(values: list[float]) -> str:
    """Format a mean and its range."""
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


@click.command()
@click.option("--seeds", default=3, show_default=True, help="Runs per kind.")
@click.option("--steps", default=500, show_default=True, help="Training steps of each run.")
@click.option("--task", "tasks", multiple=True, type=click.Choice(TASKS), help="Task to run; by default all.")
def main(seeds: int, steps: int, tasks: tuple[str, ...]) -> None:
    """Print a table per task: mean over the seeds, and their range."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_texts(folder)
        for task in tasks or TASKS:
            kinds = [kind for kind in KINDS if task != "prose" or "templates" not in kind]
            results: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
            for seed in range(seeds):  # interleaved, so that a disturbance of the machine affects all kinds
                for kind in kinds:
                    results[kind].append(train_losses(folder, task, kind, seed, steps))
                    click.echo(f"{task}, {kind}, seed {seed}: {results[kind][-1]}", err=True)
            click.echo(f"\n{task}, {steps} steps, {seeds} seeds: held-out loss, mean (lowest to highest)\n")
            click.echo("| kind | at the end | lowest on the way |\n|---|---|---|")
            for kind in kinds:
                end, least = ([one[side] for one in results[kind]] for side in (0, 1))
                click.echo(f"| {kind} | {cell(end)} | {cell(least)} |")


if __name__ == "__main__":
    main()
