"""`adaptive train --from RUN`: what a new run takes from another one, and what it refuses."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from support.foreign.folders import write_folder

from adaptive_lm.contract.generation_settings import GenerationSettings
from adaptive_lm.serve.cli import group
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.data import prepare
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.losses import cross_entropy
from adaptive_lm.train.run.checkpoints.checkpoint import Checkpoint, load_checkpoint
from adaptive_lm.train.run.folder import Run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.run.origin import given_tokenizer
from adaptive_lm.train.system.yaml_values import load_yaml

QUICK = """\
data: {{sources: ["{text}"], cache_dir: "{cache}"}}
optimizer: {{kind: adamw, adamw_lr: 0.001, adamw_matrix_lr: 0.001}}
trainer: {{steps: 4, max_seconds: null, batch_size: 2, sequence_length: 16, eval_every: 2, eval_tokens: 64,
  final_eval_tokens: 64, checkpoint_every: 2, log_every: 1, threads: 1, precision: fp32, matmul: torch, device: cpu,
  tensorboard: false, routing_snapshots: 0}}
"""


def adaptive(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=False)


def trained(*arguments: object) -> Path:
    result = adaptive("train", *arguments)
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip())


@pytest.fixture(scope="module")
def base(tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny run."""
    path = tmp_path_factory.mktemp("base") / "runs" / "base"
    training.begin(tiny_config(), Run(path))
    return path


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Import a tiny mixture."""
    pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("imported")
    write_folder(place / "model", "qwen3_moe", dtype=torch.bfloat16)
    settings = {"eos_token": "<|im_end|>", "bos_token": "<|im_end|>", "add_bos_token": True}
    (place / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    (place / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (place / "text.txt").write_text("Some held-out text.\n" * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        result = adaptive("import", "model", "--name", "moe", "--heldout", "text.txt")
    assert result.exit_code == 0, result.stderr
    return place / "runs" / "moe"


@pytest.fixture
def here(folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Change to a folder with a text and a quick recipe."""
    shutil.copy(text_file, folder / "rivers.txt")
    (folder / "quick.yaml").write_text(QUICK.format(text="rivers.txt", cache=tmp_path_factory.mktemp("cache")))
    return folder


def first_loss(run: Path) -> float:
    return float(read_metrics(run / "metrics.jsonl")[0]["loss"])


def loss_of(source: Path, new: Checkpoint) -> float:
    """Compute the loss of the weights of `source` on the first batch of the run `new`."""
    config, old = new.config, load_checkpoint(source)
    model = Transformer(new.config.model)
    model.load_state_dict(old.model_state)
    corpus = prepare(config.data, config.tokenizer, seed=0, log=lambda _: None, given=given_tokenizer(new.run))
    batch = [torch.from_numpy(each) for each in corpus.batch(0, 2, 16)]
    with torch.no_grad():
        return float(cross_entropy(model(batch[0]).logits, batch[1], batch[2]))


@pytest.mark.parametrize("name", ["base", "imported"])
def test_the_first_loss_is_that_of_the_weights_it_goes_on_from(
    name: str, here: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(name)
    run = trained("quick.yaml", "--from", source, "--name", "next")
    new = load_checkpoint(run)
    assert first_loss(run) == pytest.approx(loss_of(source, new), abs=1e-5)
    assert first_loss(run) != pytest.approx(read_metrics(run / "metrics.jsonl")[-1]["loss"], abs=1e-3)


def test_the_config_says_which_weights_it_began_with(base: Path, here: Path) -> None:
    run = trained("quick.yaml", "--from", base, "--checkpoint", "5", "--name", "next")
    origin = load_checkpoint(run).config.origin
    assert origin is not None
    complete = json.loads((base / "checkpoints" / "step-000005" / "complete.json").read_text())
    assert (origin.checkpoint, origin.sha256) == ("5", complete["files"]["model.safetensors"]["sha256"])
    (listed,) = (json.loads(line) for line in adaptive("runs", "--json").stdout.splitlines())
    assert listed["origin"] == str(base)
    assert str(base.name) in adaptive("runs").stdout


def test_a_stopped_run_goes_on_to_the_same_bits_without_the_run_it_came_from(base: Path, here: Path) -> None:
    shutil.copytree(base, here / "runs" / "base")
    whole = trained("quick.yaml", "--from", "base", "--name", "whole")
    trained("quick.yaml", "--from", "base", "--name", "parts", "--stop-at", "2")
    shutil.rmtree(here / "runs" / "base")
    parts = trained("--resume", "--name", "parts")
    assert_same(load_checkpoint(whole), load_checkpoint(parts))


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.step == other.step
    for before, after in ((one.model_state, other.model_state), (one.optimizer_state, other.optimizer_state)):
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), name


def test_a_job_that_is_restarted_needs_the_other_run_no_more(base: Path, here: Path) -> None:
    shutil.copytree(base, here / "runs" / "base")
    command = ("quick.yaml", "--from", "base", "--name", "job", "--begin-or-resume")
    trained(*command, "--stop-at", "2")
    shutil.rmtree(here / "runs" / "base")
    assert load_checkpoint(trained(*command)).step == 4


def test_the_printed_config_is_a_recipe_for_the_same_run(base: Path, here: Path) -> None:
    printed = adaptive("train", "quick.yaml", "--from", base, "--print-config").stdout
    (here / "again.yaml").write_text(printed)
    first, second = (
        trained("quick.yaml", "--from", base, "--name", "a"),
        trained("again.yaml", "--name", "b"),
    )
    assert_same(load_checkpoint(first), load_checkpoint(second))


def test_the_path_of_a_checkpoint_is_recorded_as_run_and_step(base: Path, here: Path) -> None:
    place = base / "checkpoints" / "step-000005"
    config = load_yaml(adaptive("train", "quick.yaml", "--from", place, "--print-config").stdout.encode())
    assert (config["origin"]["run"], config["origin"]["checkpoint"]) == (str(base), "5")


def test_conversations_have_the_template_of_a_run_that_was_trained_here(tiny: dict[str, Any], here: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "the sun"}, {"role": "assistant", "content": "rises"}]}
    (here / "chats.jsonl").write_text((json.dumps(chat) + "\n") * 40)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    data = {**tiny["data"], "sources": ["chats.jsonl"], "chat_template": template}
    training.begin(make_config(tiny, [{"data": data}]), Run(here / "runs" / "chatty"))
    run = trained("quick.yaml", "--from", "chatty", "--name", "next", "--data", "chats.jsonl")
    assert (run / "chat_template.jinja").read_text() == template
    assert (run / "heldout.txt").read_text().startswith("<user>the sun<|endoftext|><assistant>rises<|endoftext|>")
    plain = trained("quick.yaml", "--from", "chatty", "--name", "plain")
    assert (plain / "chat_template.jinja").read_text() == template


def test_weights_that_changed_since_are_refused(base: Path, here: Path) -> None:
    printed = adaptive("train", "quick.yaml", "--from", base, "--print-config").stdout
    config = load_checkpoint(base)
    digest = json.loads((config.path / "complete.json").read_text())["files"]["model.safetensors"]["sha256"]
    (here / "again.yaml").write_text(printed.replace(digest, "f" * 64))
    result = adaptive("train", "again.yaml", "--name", "b")
    assert (result.exit_code, f"the digest {digest[:12]}, expected ffffffffffff" in result.stderr) == (1, True)
    assert not (here / "runs" / "b").exists()


def test_the_files_of_an_imported_model_are_carried_over(imported: Path, here: Path) -> None:
    run = trained("quick.yaml", "--from", imported, "--name", "next")
    for file in ("tokenizer.json", "generation.json", "chat_template.jinja"):
        assert (run / file).read_text() == (imported / file).read_text(), file
    provenance = json.loads((run / "provenance.json").read_text())
    assert (provenance["family"], provenance["trained_from"]["checkpoint"]) == ("qwen3_moe", "0")
    assert load_checkpoint(run).config.model.vocab_size == load_checkpoint(imported).config.model.vocab_size
    assert "<|endoftext|>" not in (run / "heldout.txt").read_text()


def test_documents_begin_and_end_with_the_tokens_of_the_imported_model(imported: Path, here: Path) -> None:
    (here / "records.jsonl").write_text("".join(json.dumps({"text": f"record {i}"}) + "\n" for i in range(40)))
    run = trained("quick.yaml", "--from", imported, "--name", "next", "--data", "records.jsonl")
    config = load_checkpoint(run).config
    corpus = prepare(config.data, config.tokenizer, seed=0, log=lambda _: None, given=given_tokenizer(run))
    assert corpus.eos_id == 256
    for row in (corpus.batch(number, 1, 64).ids[0] for number in range(5)):
        text = "".join(chr(number) if number < 256 else "|" for number in row)
        assert re.fullmatch(r"[record \d|]*(\|\|record \d+){3,}[record \d|]*", text), text


def test_conversations_are_refused_where_the_template_is_foreign(imported: Path, here: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]}
    (here / "chats.jsonl").write_text((json.dumps(chat) + "\n") * 40)
    command = ("quick.yaml", "--from", imported, "--name", "next", "--data", "chats.jsonl")
    result = adaptive("train", *command)
    assert result.exit_code == 1
    assert "the text holds 40 conversations" in result.stderr
    (here / "ours.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}")
    run = trained(*command, "--set", "data.chat_template=ours.jinja", "--overwrite")
    settings = GenerationSettings.from_json((run / "generation.json").read_text(), "generation.json")
    assert (settings.dialect, settings.eos_ids) == ("own", (256,))
    assert (run / "chat_template.jinja").read_text() == (here / "ours.jinja").read_text()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.dim=64", "model.dim: 64, in {base} 32"),
        ("model.norm_eps=0.1", "model.norm_eps: 0.1, in {base} 1e-05"),
        ("model.ffn.num_experts=8", "model.ffn.num_experts: 8, in {base} 4"),
        ("tokenizer.kind=bytes", "tokenizer.kind is 'bytes', in {base} 'chars'"),
    ],
)
def test_a_setting_that_contradicts_the_weights_is_named(base: Path, here: Path, setting: str, message: str) -> None:
    result = adaptive("train", "quick.yaml", "--from", base, "--name", "next", "--set", setting)
    assert result.exit_code == 1
    assert message.format(base=base) in result.stderr
    assert not (here / "runs" / "next").exists()


def test_more_experts_than_were_trained_are_refused_and_fewer_are_not(imported: Path, here: Path) -> None:
    command = ("quick.yaml", "--from", imported, "--name", "next", "--set", "model.ffn.experts_per_token=2")
    more = adaptive("train", *command, "--set", "model.ffn.most_experts=5")
    assert (more.exit_code, "model.ffn.most_experts: 5" in more.stderr) == (1, True)
    run = trained(*command, "--set", "model.ffn.most_experts=2")
    assert read_metrics(run / "metrics.jsonl")[-1]["experts_per_token"] <= 2


def test_an_imported_mixture_trains_with_random_experts_and_is_measured_with_all(imported: Path, here: Path) -> None:
    settings = ("--set", "model.ffn.random_experts=[1, 3]", "--set", "trainer.batch_size=8")
    run = trained("quick.yaml", "--from", imported, "--name", "next", *settings)
    last = read_metrics(run / "metrics.jsonl")[-1]
    # one layer of three has experts, a dense FFN counts as one
    assert (2 + 1.8) / 3 < last["experts_per_token"] < (2 + 2.2) / 3
    assert last["val_experts_per_token"] == pytest.approx((2 + 3) / 3)


def test_context_controller_and_depth_may_change(base: Path, here: Path) -> None:
    settings = ["model.context_length=64", "model.ffn.controller=learned", "model.depth.exit_layers=[0]"]
    settings += ["model.depth.exit_criterion=router", "losses.threshold_loss=0.01"]
    result = adaptive(
        "train", "quick.yaml", "--from", base, "--name", "n", *(s for k in settings for s in ("--set", k))
    )
    assert result.exit_code == 0, result.stderr
    assert "new: exit_routers.0." in result.stderr


def test_the_run_itself_is_not_replaced(base: Path, here: Path) -> None:
    shutil.copytree(base, here / "runs" / "base")
    result = adaptive("train", "quick.yaml", "--from", "base", "--name", "base", "--overwrite")
    assert (result.exit_code, "would be deleted" in result.stderr) == (1, True)
    assert load_checkpoint(here / "runs" / "base").step == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "nothing", "--data", "rivers.txt"), "there is no run or checkpoint nothing"),
        (("--checkpoint", "best"), "give that run with --from RUN"),
        (("--from", "x", "--resume"), "leave out --stage and --resume"),
    ],
)
def test_a_wrong_command_says_what_to_type(here: Path, arguments: tuple[str, ...], message: str) -> None:
    result = adaptive("train", *arguments)
    assert result.exit_code != 0
    assert message in result.stderr


def test_without_a_recipe_the_rates_are_low_and_the_sequences_short(base: Path, here: Path) -> None:
    printed = adaptive("train", "--from", base, "--data", "rivers.txt", "--print-config").stdout
    config = load_yaml(printed.encode())
    assert (config["recipe"], config["optimizer"]["kind"], config["optimizer"]["adamw_lr"]) == (
        "fine-tune",
        "adamw",
        2e-5,
    )
    assert config["trainer"]["sequence_length"] == 32
