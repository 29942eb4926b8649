"""Runs that learn from a teacher: what they store, what they resume, and what they refuse."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support.cover import rest_slow
from support.foreign.folders import write_folder
from support.operators.compiler import needs_compiler

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import group
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.data import prepare
from adaptive_lm.train.distillation.asking import answers
from adaptive_lm.train.distillation.stored_outputs import Kind
from adaptive_lm.train.distillation.teacher import Teacher, shared_ids
from adaptive_lm.train.distillation.teacher_source import read_teacher
from adaptive_lm.train.results.summary import summary
from adaptive_lm.train.results.tables import cells
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import Run, named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]
SMALL = {"num_layers": 2, "dim": 16, "num_heads": 2, "num_kv_heads": 1}
EXITS = {"depth": {"exit_layers": [0], "layers_share": 1.0}}


@pytest.fixture(scope="module")
def elder(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny teacher."""
    path = tmp_path_factory.mktemp("elder") / "runs" / "elder"
    training.begin(tiny_config(trainer={"steps": 20, "final_eval_tokens": 64}), Run(path))
    return path


@pytest.fixture
def here(folder: Path, elder: Path) -> Path:
    """Change to a folder with the teacher as a run, and a cache of its own."""
    shutil.copytree(elder, folder / "runs" / "elder")
    return folder


@pytest.fixture
def taught(tiny_config: Make, here: Path) -> Make:
    """Return a function that makes the config of a run with a teacher."""

    def make(distillation: dict[str, Any] | None = None, **sections: dict[str, Any]) -> RunConfig:
        section = {"teacher": {"model": "elder"}, "top_k": 4, **(distillation or {})}
        data = {"cache_dir": str(here / "cache"), **sections.pop("data", {})}
        model = {**SMALL, **sections.pop("model", {})}
        return tiny_config(distillation=section, data=data, model=model, **sections)

    return make


def adaptive(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=False)


def records(name: str) -> list[dict[str, Any]]:
    return read_metrics(named_run(name).path / "metrics.jsonl")


def never(*_: object, **__: object) -> None:
    raise AssertionError("the teacher ran")


def test_a_run_measures_its_teacher_and_names_it(taught: Make, elder: Path, display: Progress) -> None:
    training.begin(taught(), named_run("pupil"), display=display)
    for record in records("pupil"):
        assert {"distillation_loss", "teacher_loss", "teacher_agreement"} <= record.keys()
        assert record["distillation_loss"] >= 0
        assert 0 <= record["teacher_agreement"] <= 1
        balance = 0.1 * record["load_balancing_loss"] + 1e-4 * record["router_z_loss"]
        expected = 0.5 * record["loss"] + 0.5 * record["distillation_loss"] + balance
        assert record["total_loss"] == pytest.approx(expected, rel=1e-5)
    assert records("pupil")[-1]["distillation_loss"] < records("pupil")[0]["distillation_loss"]
    digest = json.loads((elder / "checkpoints" / "step-000020" / "complete.json").read_text())
    teacher = load_checkpoint("runs/pupil").config.distillation.teacher  # type: ignore[union-attr]
    assert teacher.model_dump() == {
        "model": "elder", "checkpoint": "20", "sha256": digest["files"]["model.safetensors"]["sha256"],
    }  # fmt: skip
    assert json.loads((named_run("pupil").path / "provenance.json").read_text())["taught_by"] == teacher.model_dump()
    assert summary(named_run("pupil").path).figures()["teacher"] == "elder"
    assert cells(summary(named_run("pupil").path))["teacher"] == "elder"


def test_stored_outputs_are_those_of_the_teacher_at_each_place(taught: Make) -> None:
    config = taught()
    corpus = prepare(config.data, config.tokenizer, seed=0, log=lambda _: None)
    source = read_teacher(config.distillation.teacher)  # type: ignore[union-attr]
    teacher = Teacher(source, shared_ids(corpus.tokenizer, source), torch.device("cpu"), "fp32")
    text = corpus.streams[0].tokens
    kind = Kind("a", "b", 4, 2.0, 8, corpus.vocab_size, None, "fp32")
    outputs = answers(teacher, text, kind, [(10, range(14, 18)), (len(text) - 8, range(len(text) - 4, len(text)))], 8)
    for row, (start, place) in enumerate([(10, place) for place in range(14, 18)] + [
        (len(text) - 8, place) for place in range(len(text) - 4, len(text))
    ]):  # fmt: skip
        ids = torch.from_numpy(text[start : place + 1].astype(np.int64))[None]
        logits = teacher.model(ids).logits[0, -1].detach()
        log_probs = (logits / 2.0).log_softmax(-1)
        top = log_probs.topk(4)
        assert outputs.ids[row].tolist() == top.indices.tolist()
        np.testing.assert_allclose(outputs.log_probs[row], top.values, atol=1e-5)
        assert np.exp(outputs.rest[row]) == pytest.approx(1 - float(top.values.exp().sum()), abs=1e-5)
        following = int(text[place + 1 if place + 1 < len(text) else 1])
        assert outputs.loss[row] == pytest.approx(-float(logits.log_softmax(-1)[following]), abs=1e-5)


def test_a_second_run_does_not_run_the_teacher(
    taught: Make, display: Progress, story: io.StringIO, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    training.begin(taught(), named_run("first"), display=display)
    stored = sorted((here / "cache" / "teachers").glob("*/*.outputs"))
    size = sum(path.stat().st_size for path in stored)
    assert stored
    assert re.search(r"storing its outputs for [\d,]+ of [\d,]+ tokens, \d+ MiB in", story.getvalue())
    assert f", {size / 2**20:.0f} MiB in" in story.getvalue()
    monkeypatch.setattr(Teacher, "answer", never)
    training.begin(taught(trainer={"seed": 5}), named_run("second"), display=display)  # another order of the text
    assert "its outputs are stored" in story.getvalue()
    stored[0].write_bytes(stored[0].read_bytes()[:-3])
    with pytest.raises(AssertionError, match="the teacher ran"):
        training.begin(taught(), named_run("third"), display=display)


RESUMED: dict[str, dict[str, Any]] = {
    "stored": {},
    "documents": {"data": {"pack": "documents"}, "distillation": {"divergence": "reverse", "temperature": 2.0}},
    "live": {"distillation": {"top_k": 0, "divergence": "mix"}, "trainer": {"micro_batches": 2}},
    "hidden": {"distillation": {"top_k": 0, "hidden_layers": [[0, 1], [1, 1]]}},
    "own dials": {
        "self_distillation": {"exits": 0.5, "dials": 1.0},
        "model": EXITS,
        "trainer": {"checkpoint_activations": True},
    },
}


@pytest.mark.parametrize("name", rest_slow(RESUMED, ["stored", "live", "hidden"]))
def test_a_run_in_two_parts_is_that_in_one(taught: Make, display: Progress, name: str) -> None:
    config = taught(**RESUMED[name])
    training.begin(config, named_run("whole"), display=display)
    training.begin(config, named_run("parts"), stop_at=7, display=display)
    training.resume(named_run("parts"), display=display)
    whole, parts = (load_checkpoint(f"runs/{run}") for run in ("whole", "parts"))
    for kind in ("model_state", "optimizer_state"):
        one, two = getattr(whole, kind), getattr(parts, kind)
        assert one.keys() == two.keys()
        assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert whole.state["tokens_digest"] == parts.state["tokens_digest"]
    beside = [key for key in whole.optimizer_state if key.startswith("distillation.")]
    assert len(beside) == (8 if name == "hidden" else 0)


def test_hidden_states_come_closer_and_the_matrices_are_not_in_the_model(taught: Make, display: Progress) -> None:
    config = taught({"top_k": 0, "hidden_layers": [[0, 0], [1, 1]], "hidden_weight": 3.0})
    training.begin(config, named_run("pupil"), display=display)
    losses = [record["hidden_loss"] for record in records("pupil")]
    assert losses[-1] < 0.8 * losses[0]
    alone = training.begin(taught(trainer={"steps": 0}), named_run("alone"), display=display)
    names = load_checkpoint(alone.run.path).model_state.keys()
    assert load_checkpoint("runs/pupil").model_state.keys() == names


def test_a_teacher_changes_nothing_but_the_loss(taught: Make, tiny_config: Make, display: Progress) -> None:
    """Initial weights, order of the text and draws are those of a run without one."""
    run = taught({"top_k": 0}, trainer={"steps": 1})
    training.begin(run, named_run("pupil"), display=display)
    training.begin(run.model_copy(update={"distillation": None}), named_run("alone"), display=display)
    one, two = records("pupil")[0], records("alone")[0]
    assert one["loss"] == two["loss"]
    states = [load_checkpoint(f"runs/{name}") for name in ("pupil", "alone")]
    assert states[0].state["tokens_digest"] == states[1].state["tokens_digest"]
    assert torch.equal(*(state.optimizer_state["random.torch"] for state in states))


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_run_learns_as_one_that_is_not(taught: Make, display: Progress) -> None:
    sections: dict[str, Any] = {"self_distillation": {"exits": 0.5, "dials": 1.0}, "model": EXITS}
    smooth = {"kind": "adamw", "adamw_lr": 3e-3}
    for name, compiles in (("plain", False), ("compiled", True)):
        config = taught(**sections, optimizer=smooth, trainer={"steps": 3, "compile": compiles})
        training.begin(config, named_run(name), display=display)
    for key in ("loss", "total_loss", "distillation_loss", "exit_distillation_loss", "dial_distillation_loss"):
        plain, compiled = ([record[key] for record in records(name)] for name in ("plain", "compiled"))
        assert compiled == pytest.approx(plain, rel=1e-4, abs=1e-4), key


# --- teachers of every kind


def test_the_run_behind_an_exported_model_teaches(taught: Make, here: Path, display: Progress) -> None:
    exported = here / "elsewhere" / "model"
    exported.mkdir(parents=True)
    (exported / "manifest.json").write_text(json.dumps({"created_by": {"run": "elder", "step": 20}}))
    shutil.copy(here / "runs" / "elder" / "tokenizer.json", exported)
    config = taught({"teacher": {"model": str(exported)}})
    training.begin(config, named_run("pupil"), display=display)
    teacher = load_checkpoint("runs/pupil").config.distillation.teacher  # type: ignore[union-attr]
    assert (teacher.model, teacher.checkpoint) == ("elder", "20")
    (exported / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"exported from step 20 of the run elder, which is not here.*bring the run"):
        training.begin(config, named_run("other"), display=display)
    (exported / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"does not say which run.*name the run"):
        training.begin(config, named_run("other"), display=display)


@pytest.fixture
def foreign(here: Path) -> Path:
    pytest.importorskip("transformers")
    write_folder(here / "llama")
    return here / "llama"


@pytest.mark.parametrize("top_k", [4, 0], ids=["stored", "live"])
def test_a_model_of_another_program_teaches_with_its_tokenizer(
    foreign: Path, tiny_config: Make, here: Path, display: Progress, top_k: int
) -> None:
    config = tiny_config(
        distillation={"teacher": {"model": str(foreign)}, "top_k": top_k}, data={"cache_dir": str(here / "cache")},
        tokenizer={"kind": str(foreign / "tokenizer.json")}, model=SMALL,
    )  # fmt: skip
    training.begin(config, named_run("pupil"), display=display)
    assert all(record["distillation_loss"] > 0 for record in records("pupil"))
    taught_by = json.loads((named_run("pupil").path / "provenance.json").read_text())["taught_by"]
    assert taught_by["format"] == "huggingface"
    assert "model.safetensors" in taught_by["files"]


def test_the_end_of_text_of_the_teacher_takes_the_place_of_ours(foreign: Path) -> None:
    from adaptive_lm.train.config.distillation import TeacherConfig
    from adaptive_lm.train.data.tokenizers.tokenizer_json import load_tokenizer

    source = read_teacher(TeacherConfig(model=str(foreign)))
    tokenizer = load_tokenizer(foreign / "tokenizer.json")  # which adds <|endoftext|>
    ids = shared_ids(tokenizer, source)
    assert (ids.size, ids.own_end, source.end) == (258, 257, 256)
    teacher = Teacher(source, ids, torch.device("cpu"), "fp32")
    text = torch.tensor([[5, 257, 7, 9]])
    theirs = teacher.model(torch.tensor([[5, 256, 7, 9]])).logits
    answer = teacher.answer(text).logits
    assert answer.shape == (1, 4, 258)
    torch.testing.assert_close(answer[..., :256], theirs[..., :256])
    torch.testing.assert_close(answer[..., 257], theirs[..., 256])
    torch.testing.assert_close(answer[..., 256], theirs[..., :258].amin(-1))


# --- refusals


def refused(config: RunConfig, message: str, name: str = "refused") -> None:
    with pytest.raises(UserError, match=message):
        training.begin(config, named_run(name))
    assert not list(named_run(name).checkpoints.glob("step-*"))


def test_another_tokenizer_is_refused_and_the_cure_works(taught: Make, here: Path) -> None:
    given = taught(tokenizer={"kind": "bytes"})
    with pytest.raises(UserError) as caught:
        training.begin(given, named_run("pupil"))
    message = str(caught.value)
    assert re.search(r"has another tokenizer: 257 of 257 token ids mean another token there, the first", message)
    cure = re.search(r"--tokenizer (\S+)$", message)
    assert cure is not None
    training.begin(taught(tokenizer={"kind": cure.group(1)}), named_run("pupil"), overwrite=True)
    assert records("pupil")


def test_equal_tokens_under_other_ids_are_another_tokenizer(taught: Make, here: Path) -> None:
    path = here / "runs" / "elder" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    swapped = here / "swapped.json"
    swapped.write_text(json.dumps(content))
    refused(taught(tokenizer={"kind": str(swapped)}), "another tokenizer: 2 of ")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"teacher": {"model": "missing"}}, "there is no run or checkpoint missing; runs here: elder"),
        ({"teacher": {"model": "elder", "checkpoint": "7"}}, "step"),
        ({"teacher": {"model": "elder", "sha256": "0" * 64}}, "expected 000000000000: it has changed since"),
        ({"top_k": 0, "hidden_layers": [[0, 5]]}, "layer 5 of the teacher, which has 2; name a layer from 0 to 1"),
        ({"stored_gib": 1e-6}, "stored_gib allows 1e-06; raise it, or store fewer.*distillation.top_k=0"),
    ],
    ids=["missing", "checkpoint", "changed", "layer", "size"],
)
def test_a_teacher_that_cannot_be_used_is_refused(taught: Make, section: dict[str, Any], message: str) -> None:
    refused(taught(section), message)


def test_sequences_beyond_the_teachers_context_are_refused_and_both_cures_work(taught: Make) -> None:
    longer = {"context_length": 64}
    refused(
        taught({"top_k": 0}, model=longer),
        "sequence of the run has 64 tokens, the context.*32; .*--set trainer.sequence_length=32; or.*top_k=16",
    )
    training.begin(taught({"top_k": 0}, model=longer, trainer={"sequence_length": 32}), named_run("shorter"))
    training.begin(taught({"top_k": 16}, model=longer), named_run("stored"))


def test_a_text_that_changes_is_refused_where_outputs_are_stored_and_the_cure_works(taught: Make) -> None:
    noisy = {"data": {"augment": {"word_dropout": 0.3}}}
    refused(taught(**noisy), "data.augment changes the text.*--set distillation.top_k=0")
    training.begin(taught({"top_k": 0}, **noisy), named_run("pupil"))
    assert records("pupil")[-1]["distillation_loss"] > 0


def test_the_teacher_is_not_replaced_by_its_pupil(taught: Make) -> None:
    with pytest.raises(UserError, match="is the teacher, and would be deleted; give the new run another --name"):
        training.begin(taught(), named_run("elder"), overwrite=True)
    assert load_checkpoint("runs/elder").step == 20


def test_a_run_is_resumed_with_its_own_teacher_wherever_that_is(taught: Make, here: Path, display: Progress) -> None:
    training.begin(taught(), named_run("pupil"), stop_at=4, display=display)
    shutil.move(here / "runs" / "elder", here / "runs" / "older")
    with pytest.raises(UserError, match="no run or checkpoint elder"):
        training.resume(named_run("pupil"), display=display)
    moved = {"distillation": {"teacher": {"model": "older"}}}
    assert training.resume(named_run("pupil"), [moved], stop_at=6, display=display).step == 6
    other = {"distillation": {"teacher": {"checkpoint": "10"}}}
    with pytest.raises(UserError, match=r"teacher.checkpoint: '20' -> '10' \(never: the run learns from"):
        training.resume(named_run("pupil"), [moved, other], override=True, display=display)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weight": 0.3}, "needs a teacher: name one with --teacher RUN"),
        ({"teacher": {"model": "a"}, "hidden_layers": [[0, 0]]}, "only outputs can be stored.*set top_k to 0"),
        ({"teacher": {"model": "a"}, "hidden_weight": 2}, "hidden_layers is empty"),
        ({"teacher": {"model": "a"}, "tempreature": 2}, "there is no key 'distillation.tempreature'"),
        ({"teacher": {"model": "a"}, "reverse_share": 0.2}, "divergence is forward: set divergence to mix"),
        ({"teacher": {"model": "a"}, "top_k": 0, "hidden_layers": [[9, 0]]}, "layer 9 of the model; expected 0 to"),
    ],
    ids=["teacher", "stored", "weight", "key", "share", "layer"],
)
def test_a_section_that_contradicts_itself_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config({"distillation": section})


# --- the command


def test_the_option_names_the_teacher_and_a_run_lists_it(taught: Make, here: Path) -> None:
    recipe = taught().model_copy(update={"distillation": None}).to_yaml()
    (here / "quick.yaml").write_text(recipe)
    result = adaptive("train", "quick.yaml", "--teacher", "elder", "--name", "pupil", "--set", "distillation.top_k=3")
    assert result.exit_code == 0, result.stderr
    assert "elder" in adaptive("runs").stdout.splitlines()[-1]
    assert load_checkpoint("runs/pupil").config.distillation.top_k == 3  # type: ignore[union-attr]
    shown = adaptive("train", "quick.yaml", "--teacher", "elder", "--print-config").stdout
    assert "model: elder" in shown
