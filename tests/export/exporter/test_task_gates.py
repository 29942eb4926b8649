"""Gates per task: learned in training, and folded into the routers of an export for one task."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.runs import text, write_run

from adaptive_lm.contract.errors import UserError
from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.source import read
from adaptive_lm.serve.cli import group
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run

GATES = {"num_experts": 4, "expert_dim": 16, "experts_per_token": 1.6, "task_bias": True}


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a run whose two tasks have very different gates."""
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "runs" / "demo", ffn=GATES, tasks=["rivers", "stones"])


def torch_model(run: Path) -> Transformer:
    checkpoint = load_checkpoint(run)
    model = Transformer(checkpoint.config.model)
    model.load_state_dict(dict(checkpoint.model_state))
    return model.eval()


@pytest.mark.parametrize("task", ["rivers", "stones"])
def test_an_export_for_a_task_is_the_model_with_the_gates_of_that_task(gated: Path, task: str) -> None:
    """The export itself compares its graphs with the folded model; here that is compared with the whole one."""
    source, model = read(gated, task), torch_model(gated)
    ids = source.heldout_ids(64)
    with torch.no_grad():
        whole = model(ids, source.thresholds(), tasks=torch.tensor([["rivers", "stones"].index(task)]))
        folded = source.model(ids, source.thresholds())
    torch.testing.assert_close(folded.logits, whole.logits, rtol=0, atol=1e-5)
    for one, other in zip(folded.routing, whole.routing, strict=True):
        assert one.routes is not None
        assert other.routes is not None
        assert torch.equal(one.routes.selected_experts, other.routes.selected_experts)
    run_export("runs/demo", gated / task, task=task, threads=1)
    assert (gated / task / "manifest.json").is_file()


def test_the_gates_of_two_tasks_choose_other_experts(gated: Path) -> None:
    model = torch_model(gated)
    ids = read(gated, "rivers").heldout_ids(64)
    with torch.no_grad():
        chosen = [model(ids, tasks=torch.tensor([task])).routing[0].routes for task in (0, 1)]
    assert chosen[0] is not None
    assert chosen[1] is not None
    assert not torch.equal(chosen[0].selected_experts, chosen[1].selected_experts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "gates for the tasks rivers, stones; none of them is given. Choose one, and a folder for it: adaptive"),
        (("--task", "stone"), "none of them is called 'stone'; did you mean stones?"),
    ],
)  # fmt: skip
def test_a_task_that_is_missing_or_unknown_is_one_message(
    gated: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = CliRunner().invoke(group, ["export", "demo", *arguments])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not (gated / "model").exists()


def test_a_task_of_a_model_without_gates_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "demo")
    with pytest.raises(
        UserError, match="has no gates per task, so the task 'rivers' changes nothing; leave --task out"
    ):
        read(run, "rivers")


def test_other_formats_refuse_gates_per_task(gated: Path) -> None:
    for to in ("hf", "gguf"):
        result = CliRunner().invoke(group, ["export", "demo", "--to", to, "--out", f"out-{to}"])
        assert result.exit_code == 1
        assert not Path(f"out-{to}").exists()


def test_training_moves_the_gates_of_each_task_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(text(100))
    Path("b.txt").write_text(text(100)[::-1])
    tasks = [{"name": name, "sources": [f"{name}.txt"]} for name in "ab"]
    config = make_config({
        "data": {"tasks": tasks, "cache_dir": "cache"}, "tokenizer": {"kind": "chars"},
        "model": {"context_length": 32, "dim": 32, "num_layers": 2, "num_heads": 2, "ffn": GATES},
        "trainer": {"steps": 6, "max_seconds": None, "batch_size": 4, "threads": 1, "precision": "fp32",
                    "matmul": "torch", "device": "cpu", "tensorboard": False, "routing_snapshots": 0},
    })  # fmt: skip
    assert training.begin(config, named_run("whole")).complete
    training.begin(config, named_run("parts"), stop_at=3)
    assert training.resume(named_run("parts")).complete
    whole, parts = (load_checkpoint(f"runs/{name}") for name in ("whole", "parts"))
    assert whole.config.model.tasks == ("a", "b")
    for name, tensor in whole.model_state.items():
        assert torch.equal(tensor, parts.model_state[name]), name
    gates = whole.model_state["layers.0.moe.task_bias"]
    assert gates.shape == (2, 4)
    assert gates.abs().min() > 0
    assert not np.allclose(gates[0], gates[1])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"sources": ["a.txt"]}, "model": {"ffn": {"task_bias": True}}}, "but there are no tasks; name them"),
        (
            {"data": {"tasks": [{"name": "a", "sources": ["a"]}]},
             "model": {"ffn": {"routing": "dense", "task_bias": True}}},
            "task_bias needs experts",
        ),
    ],
)  # fmt: skip
def test_gates_without_tasks_or_experts_are_refused(sections: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config(sections)
