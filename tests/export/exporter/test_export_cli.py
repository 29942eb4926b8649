"""The command `adaptive export`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from adaptive_lm.contract.file_names import WEIGHTS
from adaptive_lm.export.proof import quantisation
from adaptive_lm.runtime import load
from adaptive_lm.runtime.format.manifest import Manifest
from adaptive_lm.serve.cli import group

pytestmark = pytest.mark.usefixtures("quick")


def adaptive(*arguments: str) -> Result:
    return CliRunner().invoke(group, ["export", "--threads", "1", *arguments])


@pytest.mark.parametrize(
    ("source", "step"),
    [
        (["tiny"], 26),
        (["runs/tiny"], 26),
        (["runs/tiny/checkpoints/step-000010"], 10),
        ([], 26),
    ],
    ids=["by name", "by path", "a checkpoint", "the newest"],
)
def test_the_folder_goes_to_stdout_and_the_story_to_stderr(here: Path, source: list[str], step: int) -> None:
    done = adaptive(*source, "--onnx")
    assert done.exit_code == 0, done.output
    assert done.stdout == "runs/tiny/model\n"
    assert f"exporting runs/tiny/checkpoints/step-{step:06d} (0.0M parameters) as fp32\n" in done.stderr
    for words in (
        "graph vs torch, trained thresholds: 128 tokens, all decisions equal (0 near ties, 0 flipped), largest logit",
        "one token at a time vs one prompt: 24 tokens",
        "greedy continuation vs torch: 8 of 8 tokens equal",
        "profile of 3 decoded tokens",
        "wrote runs/tiny/model",
    ):
        assert words in done.stderr
    assert done.stderr.endswith('next: adaptive generate "..." --model runs/tiny/model\n')
    assert Manifest.read("runs/tiny/model").created_by["step"] == step


def test_json_is_the_report_and_nothing_else_on_stdout(here: Path) -> None:
    done = adaptive("tiny", "--json", "--out", "elsewhere/m")
    found = json.loads(done.stdout)
    assert found["model"] == "elsewhere/m"
    assert found["parity"] == Manifest.read("elsewhere/m").parity
    assert found["parity"]["passed"] is True
    assert not (here / "runs" / "tiny" / "model").exists()


def test_int8_is_written_beside_fp32_and_both_generate(here: Path) -> None:
    assert adaptive("tiny").exit_code == 0
    done = adaptive("tiny", "--onnx", "--quantize", "int8", "--out", "runs/tiny/int8")
    assert done.exit_code == 0, done.output
    assert done.stdout == "runs/tiny/int8\n"
    assert "bits per byte, torch" in done.stderr
    assert "of the routing decisions differ" in done.stderr
    manifests = [Manifest.read(f"runs/tiny/{name}") for name in ("model", "int8")]
    assert [manifest.model.precision for manifest in manifests] == ["fp32", "int8"]
    assert manifests[1].files[WEIGHTS].bytes < 0.5 * manifests[0].files[WEIGHTS].bytes  # half of a tiny one are scales
    for name in ("model", "int8"):
        engine = load(f"runs/tiny/{name}", device="cpu", threads=1)
        assert engine.manifest.model.num_layers == 3


def test_a_second_export_takes_the_place_of_the_first(here: Path) -> None:
    assert adaptive("runs/tiny/checkpoints/step-000010").exit_code == 0
    assert adaptive("tiny").exit_code == 0
    assert Manifest.read("runs/tiny/model").created_by["step"] == 26
    assert sorted(path.name for path in (here / "runs" / "tiny").iterdir() if "model" in path.name) == ["model"]


def damage_newest(here: Path) -> None:
    (here / "runs" / "tiny" / "checkpoints" / "step-000026" / "model.safetensors").write_bytes(b"")


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(here: Path) -> None:
    damage_newest(here)
    done = adaptive("tiny")
    assert done.exit_code == 0
    assert "warning: damaged checkpoint: runs/tiny/checkpoints/step-000026/model.safetensors" in done.stderr
    assert "exporting runs/tiny/checkpoints/step-000010" in done.stderr


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (lambda here: None, ["tony"], "error: there is no run or checkpoint tony; runs here: tiny\n"),
        (lambda here: shutil.rmtree(here / "runs"), [], "train one: adaptive train quickstart --name demo\n"),
        (
            lambda here: (here / "runs/tiny/heldout.txt").unlink(),
            ["tiny"],
            "cannot read runs/tiny/heldout.txt",
        ),
        (
            lambda here: (here / "runs/tiny/tokenizer.json").unlink(),
            ["tiny"],
            "cannot read runs/tiny/tokenizer.json",
        ),
        (lambda here: shutil.rmtree(here / "runs/tiny/checkpoints"), ["tiny"], "error: runs/tiny has no checkpoint"),
        (damage_newest, ["runs/tiny/checkpoints/step-000026"], "error: damaged checkpoint: runs/tiny/checkpoints/step"),
        (lambda here: None, ["tiny", "--out", "runs"], "runs exists and is not an exported model"),
        (
            lambda here: None,
            ["tiny", "--out", "runs/tiny/config.yaml/m"],
            "nothing was exported. Free disk space,",
        ),
    ],
    ids=["unknown run", "no run", "no heldout", "no tokenizer", "no checkpoint", "damaged", "a folder", "no folder"],
)
def test_a_mistake_gets_words_and_exit_code_1(
    here: Path, spoil: Callable[[Path], object], arguments: list[str], words: str
) -> None:
    spoil(here)
    done = adaptive(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.output
    assert not list(here.rglob("manifest.json"))


def test_an_int8_model_that_lost_too_much_ends_with_1_and_what_to_do(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quantisation.MAX_WORSE, "int8", -0.5)
    done = adaptive("tiny", "--quantize", "int8")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.endswith("Train it longer, or export without --quantize\n")


@pytest.mark.parametrize("arguments", [["--quantize", "int3"], ["--threads", "0"], ["a", "b"]])
def test_wrong_usage_ends_with_2(here: Path, arguments: list[str]) -> None:
    assert adaptive(*arguments).exit_code == 2


def test_the_help_ends_with_an_example_that_works(here: Path) -> None:
    shutil.copytree("runs/tiny", "runs/demo")
    told = CliRunner().invoke(group, ["export", "--help"]).output.rstrip()
    example = told.rsplit("Example: adaptive export ", 1)[1].split()
    assert adaptive(*example).exit_code == 0
