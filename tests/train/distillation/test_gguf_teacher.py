"""A GGUF file as the teacher of `adaptive train --teacher FILE.gguf`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support.foreign.gguf_models import write_random

from adaptive_lm.contract.file_names import TOKENIZER
from adaptive_lm.serve.cli import group
from adaptive_lm.train.config.distillation import TeacherConfig
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.data.tokenizers.tokenizer_json import load_tokenizer
from adaptive_lm.train.distillation.teacher import Teacher, shared_ids
from adaptive_lm.train.distillation.teacher_source import read_teacher
from adaptive_lm.train.importing.gguf.reader import read_gguf
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics

TEACHER = "models/teacher.gguf"


@pytest.fixture
def here(folder: Path, tiny_config: Callable[..., RunConfig]) -> Path:
    """Change to a folder with a GGUF file, its tokenizer, and the recipe of a small model with another tokenizer."""
    write_random(folder / TEACHER, "llama")
    (folder / TOKENIZER).write_text(read_gguf(folder / TEACHER, lambda *_: None).tokenizer, "utf-8")
    model = {"num_layers": 2, "dim": 16, "num_heads": 2, "num_kv_heads": 1}
    recipe = tiny_config(data={"cache_dir": str(folder / "cache")}, model=model, tokenizer={"kind": "chars"})
    (folder / "small.yaml").write_text(recipe.to_yaml(), "utf-8")
    return folder


def adaptive(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=False)


def train(*arguments: object) -> Result:
    return adaptive("train", "small.yaml", "--name", "pupil", *arguments)


@pytest.mark.parametrize("top_k", [4, 0], ids=["stored", "live"])
def test_a_gguf_file_teaches_a_run_with_its_tokenizer(here: Path, top_k: int) -> None:
    only_the_teacher = ("--set", "distillation.weight=1", "--set", f"distillation.top_k={top_k}")
    result = train("--teacher", TEACHER, "--tokenizer", TOKENIZER, *only_the_teacher)
    assert (result.exit_code, result.stdout) == (0, "runs/pupil\n"), result.stderr
    records = read_metrics(named_run("pupil").path / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    losses = [record["distillation_loss"] for record in records]
    assert min(losses) > 0
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])
    teacher = load_checkpoint("runs/pupil").config.distillation.teacher  # type: ignore[union-attr]
    taught_by = json.loads((named_run("pupil").path / "provenance.json").read_text("utf-8"))["taught_by"]
    assert (teacher.model, teacher.checkpoint) == (TEACHER, "last")
    assert (taught_by["format"], list(taught_by["files"])) == ("gguf", ["teacher.gguf"])
    assert taught_by["sha256"] == teacher.sha256


def test_a_gguf_teacher_answers_as_transformers_does(here: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate, by which transformers reads GGUF, is not installed")
    source = read_teacher(TeacherConfig(model=TEACHER))
    tokenizer = load_tokenizer(here / TOKENIZER)
    ids = tokenizer.encode("the sun rises over the river near the stone").ids
    teacher = Teacher(source, shared_ids(tokenizer, source), torch.device("cpu"), "fp32")
    logits = teacher.answer(torch.tensor([ids])).logits[0].numpy()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        here / "models", gguf_file="teacher.gguf", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(logits - expected[:, : logits.shape[1]]).max() < 1e-4 * expected.std()


def test_a_gguf_teacher_with_another_tokenizer_is_refused_and_the_cure_works(here: Path) -> None:
    refused = train("--teacher", TEACHER)
    assert refused.exit_code == 1
    assert re.search(
        rf"the teacher {TEACHER} has another tokenizer: \d+ of \d+ token ids mean another token there, the first of "
        r"them 1: '<unk>' here, '<\|im_start\|>' there\. Its outputs are probabilities of its own tokens, so both need "
        r"one vocabulary",
        refused.stderr,
    )
    assert not list(named_run("pupil").checkpoints.glob("step-*"))
    cure = re.search(r"adaptive (import .*?), then (--teacher .*)$", refused.stderr.strip())
    assert cure is not None, refused.stderr
    assert adaptive(*cure[1].split()).exit_code == 0
    result = train(*cure[2].split())
    assert result.exit_code == 0, result.stderr
    assert read_metrics(named_run("pupil").path / "metrics.jsonl")[-1]["distillation_loss"] > 0


def test_a_run_is_not_resumed_with_another_gguf_file_of_the_same_name(here: Path) -> None:
    begun = train("--teacher", TEACHER, "--tokenizer", TOKENIZER, "--stop-at", 4)
    assert begun.exit_code == 0, begun.stderr
    write_random(here / TEACHER, "llama", seed=1)
    resumed = adaptive("train", "--resume", "--name", "pupil")
    assert resumed.exit_code == 1
    assert "it has changed since; restore it" in resumed.stderr
    assert load_checkpoint("runs/pupil").step == 4
