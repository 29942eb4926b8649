"""A run in parts equals a run in one, bit for bit on a CPU; what is not the same run is refused (T13-T22)."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cover import rest_slow

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.data import Corpus, prepare
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer
from adaptive_lm.train.loop import curriculum
from adaptive_lm.train.run.checkpoints.best import read_best
from adaptive_lm.train.run.checkpoints.checkpoint import Checkpoint, load_checkpoint
from adaptive_lm.train.run.folder import Run, named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]

VARIANTS: dict[str, dict[str, Any]] = {
    "muon": {},
    "adamw": {"optimizer": {"kind": "adamw"}},
    "bf16": {"trainer": {"precision": "bf16"}},
    "accumulated": {"trainer": {"micro_batches": 4}},  # T15
    "background": {"trainer": {"save": "background", "checkpoint_every": 2}},  # T17: what the writer's thread kept
    "depth routed": {"model": {"num_layers": 3, "depth": {"layers_share": 0.6, "exit_layers": [1]}}},
    "cosine": {"schedule": {"kind": "cosine"}},
    "sgdr": {"schedule": {"kind": "sgdr", "warmup": "exponential"}},  # T17: the restart that has passed
    "bidirectional": {"optimizer": {"kind": "lars", "bidirectional": True}},
    "sgd": {"optimizer": {"kind": "sgd", "clip": "agc"}},
    "percentile": {"optimizer": {"clip": "percentile", "clip_percentile": 50}},  # T17: the history of norms
    "random sparsity": {"schedule": {"dense_share": 0.2, "sparsify_share": 0.5, "random_sparsity": [0.5, 1.5]}},
    "random experts": {  # the number of experts of each token
        "model": {"ffn": {"most_experts": 3, "random_experts": [1, 3], "controller": "fixed", "router_top_p": 1.0}}
    },
    "exit curriculum": {  # T17: which exit's turn it is, and who drops which layer
        "model": {"num_layers": 3, "depth": {"exit_layers": [0, 1], "layer_dropout": 0.5}},
        "losses": {"exit_curriculum": "rotational"},
    },
    "states": {  # mixers beside attention, and tokens that skip them
        "model": {
            "num_layers": 5,
            "mixers": ["retnet", "mamba2", "gated_delta", "rwkv7", "attention"],
            "recurrence": {"chunk": 8},
            "depth": {"layers_share": 0.6, "exit_layers": [1], "layer_dropout": 0.3},
        }
    },
    "learned and held": {  # T17: levels, factors, the integral of PI, windows, heads and contextual positions
        "model": {
            "num_layers": 3,
            "attention": {
                "positions": ["cope", "rope", "none"],
                "max_positions": 8,
                "window": [0, 16, 0],
                "window_kind": "entropy",
                "window_least": 4,
            },
            "heads": {"routing": "top_p", "controller": "pi", "scope": "model"},
            "ffn": {"controller": "learned", "per_token": True},
            "depth": {"layers_share": 0.6, "controller": "pi"},
        },
    },
}


SHORT = [
    "background",
    "sgdr",
    "bidirectional",
    "percentile",
    "random sparsity",
    "exit curriculum",
    "states",
    "learned and held",
]
"""Those that keep a state of their own; `make test-all` resumes the others too."""


def trained(config: RunConfig, name: str, display: Progress, stops: tuple[int, ...] = ()) -> Checkpoint:
    """Train a run of `config`, resumed after each of the stops."""
    run = named_run(name)
    ends = [*stops, None]
    outcome = training.begin(config, run, stop_at=ends[0], display=display)
    for stop in ends[1:]:
        assert not outcome.complete
        outcome = training.resume(run, stop_at=stop, display=display)
    assert outcome.complete
    return load_checkpoint(run.path)


def curve(run: Path) -> list[tuple[Any, ...]]:
    """Return the metrics, without what a clock measured."""
    keys = ("step", "loss", "val_loss", "bits_per_byte", "experts_per_token", "layers_per_token", "grad_norm", "lr")
    return [tuple(record[key] for key in keys) for record in read_metrics(run / "metrics.jsonl")]


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.step == other.step
    for before, after in ((one.model_state, other.model_state), (one.optimizer_state, other.optimizer_state)):
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), name
    assert one.state["random"] == other.state["random"]
    assert len(one.state["guard"]["losses"]) == min(one.step, 128)
    for key in ("tokens_seen", "tokens_digest", "bad_steps", "guard", "clip_history"):
        assert one.state[key] == other.state[key]
    assert one.state["scored"] == other.state["scored"]
    assert read_best(one.run) == read_best(other.run)
    assert curve(one.run) == curve(other.run)


@pytest.mark.parametrize("variant", rest_slow(VARIANTS, SHORT))
def test_a_run_stopped_halfway_and_resumed_equals_a_run_in_one(
    tiny_config: Make, folder: Path, display: Progress, variant: str
) -> None:
    """T13, T15: weights, optimizer, controllers, random states and metrics."""
    config = tiny_config(**VARIANTS[variant])
    assert_same(trained(config, "whole", display), trained(config, "parts", display, (6,)))


@pytest.mark.parametrize("stop", rest_slow([4, 5, 6], [5]))
def test_a_run_stopped_before_at_and_after_the_end_of_an_epoch_equals_a_run_in_one(
    tiny_config: Make, folder: Path, display: Progress, text_file: Path, stop: int
) -> None:
    """T15: an epoch of this text has 20 windows, which are five steps."""
    Path("short.txt").write_text(text_file.read_text()[:740])
    config = tiny_config(data={"sources": ["short.txt"]})
    whole = trained(config, "whole", display)
    corpus = prepare(config.data, config.tokenizer, seed=0, log=lambda _: None)
    assert corpus.train_tokens // 32 == 20
    assert_same(whole, trained(config, "parts", display, (stop,)))


def test_a_run_that_ends_within_an_accumulation_repeats_that_step_from_its_first_part(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T15: the process ends (KeyboardInterrupt stands for it) after two of the four parts of step 8."""
    config = tiny_config(trainer={"micro_batches": 4})
    whole = trained(config, "whole", display)
    compute, calls = curriculum.training_loss, iter(range(1000))

    def end(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 7 * 4 + 2:
            raise KeyboardInterrupt
        return compute(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(curriculum, "training_loss", end)
        with pytest.raises(KeyboardInterrupt):
            training.begin(config, named_run("parts"), display=display)
    assert load_checkpoint("runs/parts").step == 5
    training.resume(named_run("parts"), display=display)
    assert_same(whole, load_checkpoint("runs/parts"))


@pytest.mark.slow
def test_200_steps_equal_100_and_a_resume_of_100(tiny_config: Make, folder: Path, display: Progress) -> None:
    """T13 at the length that the issue names."""
    config = tiny_config(trainer={"steps": 200, "checkpoint_every": 30, "eval_every": 40})
    assert_same(trained(config, "whole", display), trained(config, "parts", display, (100,)))


def test_a_run_resumed_twice_equals_a_run_in_one(tiny_config: Make, folder: Path, display: Progress) -> None:
    """T14."""
    config = tiny_config()
    assert_same(trained(config, "whole", display), trained(config, "parts", display, (3, 7)))


def test_every_random_generator_continues_where_it_stopped(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T17: python's, numpy's and torch's generators; nothing of ours draws in the loop today, so the test does."""
    draw = Corpus.batch
    drawn: list[tuple[float, float, float]] = []

    def draw_more(self: Corpus, *arguments: Any, **options: Any) -> Any:
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return draw(self, *arguments, **options)

    monkeypatch.setattr(Corpus, "batch", draw_more)
    trained(tiny_config(), "whole", display)
    trained(tiny_config(), "parts", display, (6,))
    assert len(drawn) == 24
    assert drawn[:12] == drawn[12:]


def test_more_steps_for_a_run_of_zero_steps_begin_from_its_weights(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    training.begin(tiny_config(trainer={"steps": 0}), named_run("parts"), display=display)
    training.resume(named_run("parts"), [{"trainer": {"steps": 12}}], display=display)
    whole = trained(tiny_config(), "whole", display)
    for name, tensor in load_checkpoint("runs/parts").model_state.items():
        assert torch.equal(tensor, whole.model_state[name]), name


def test_with_a_constant_schedule_a_longer_run_continues_a_shorter_one(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    def config(steps: int) -> RunConfig:
        return tiny_config(
            schedule={"kind": "constant", "warmup_share": 0.0}, trainer={"steps": steps, "eval_every": 100}
        )

    training.begin(config(6), named_run("parts"), display=display)
    assert training.resume(named_run("parts"), [{"trainer": {"steps": 12}}], display=display).complete
    whole = trained(config(12), "whole", display)
    for name, tensor in load_checkpoint("runs/parts").model_state.items():
        assert torch.equal(tensor, whole.model_state[name]), name


def test_a_run_killed_after_its_checkpoint_repeats_the_lost_steps_once(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    """Records of steps that were lost with the process are dropped, or the curve would hold them twice."""
    config = tiny_config()
    whole = trained(config, "whole", display)
    training.begin(config, named_run("parts"), stop_at=5, display=display)
    with Path("runs/parts/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 99.0}) + "\n" + '{"step": 7, "lo')
    training.resume(named_run("parts"), display=display)
    assert curve(Path("runs/parts")) == curve(whole.run)


def test_a_damaged_checkpoint_is_passed_over_set_aside_and_trained_again(
    tiny_config: Make, folder: Path, display: Progress, story: io.StringIO
) -> None:
    """T3, T7: it is not tried a second time."""
    config = tiny_config()
    whole = trained(config, "whole", display)
    training.begin(config, named_run("parts"), stop_at=10, display=display)
    weights = Path("runs/parts/checkpoints/step-000010/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    training.resume(named_run("parts"), display=display)
    assert "model.safetensors has" in story.getvalue()
    assert "falling back to runs/parts/checkpoints/step-000005" in story.getvalue()
    assert Path("runs/parts/checkpoints/step-000010.damaged").is_dir()
    assert_same(whole, load_checkpoint("runs/parts"))


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_again_from_nothing(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    """T6."""
    training.begin(tiny_config(), named_run("a"), display=display)
    for path in Path("runs/a/checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(UserError, match="every checkpoint of runs/a is damaged"):
        training.resume(named_run("a"), display=display)


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        ({"model": {"dim": 64}}, r"model\.dim: 32 -> 64"),
        ({"optimizer": {"kind": "adamw"}}, r"optimizer\.kind: 'muon' -> 'adamw'"),  # T20
        ({"trainer": {"seed": 4}}, r"trainer\.seed: 0 -> 4"),
        ({"trainer": {"batch_size": 8}}, r"trainer\.batch_size: 4 -> 8"),
        ({"schedule": {"kind": "cosine"}}, r"schedule\.kind: 'wsd' -> 'cosine'"),
        ({"tokenizer": {"kind": "words"}}, r"tokenizer\.kind: 'chars' -> 'words'"),  # T21
        ({"data": {"val_fraction": 0.2}}, r"data\.val_fraction: 0\.1 -> 0\.2"),
        ({"losses": {"exit_loss": 0.1}, "model": {"dim": 64}}, r"(?s)losses\.exit_loss.*model\.dim"),
    ],
)
def test_resuming_with_other_settings_is_refused_with_the_differences(
    tiny_config: Make, folder: Path, display: Progress, change: dict[str, Any], listed: str
) -> None:
    """T18, T20, T21."""
    training.begin(tiny_config(), named_run("a"), stop_at=1, display=display)
    with pytest.raises(UserError, match=listed):
        training.resume(named_run("a"), [change], display=display)
    assert load_checkpoint("runs/a").step == 1


def test_override_resume_accepts_other_rates_and_notes_them(
    tiny_config: Make, folder: Path, display: Progress, story: io.StringIO
) -> None:
    """T18, T19: the batch of another size continues at the next window."""
    training.begin(tiny_config(), named_run("a"), stop_at=5, display=display)
    change = {"optimizer": {"lr": 0.001}, "trainer": {"batch_size": 8}, "schedule": {"kind": "constant"}}
    with pytest.raises(UserError, match=r"(?s)optimizer\.lr: 0\.03 -> 0\.001\n.*or change it.*--override-resume"):
        training.resume(named_run("a"), [change], display=display)
    assert training.resume(named_run("a"), [change], override=True, stop_at=8, display=display).step == 8
    assert "note: optimizer.lr was 0.03 and is 0.001 from step 5 on" in story.getvalue()
    sessions = json.loads(Path("runs/a/versions.json").read_text())["sessions"]
    assert "overridden" not in sessions[0]
    assert sessions[1]["overridden"]["step"] == 5
    assert sessions[1]["overridden"]["optimizer.lr"] == [0.03, 0.001]
    assert [record["lr"] for record in read_metrics(Path("runs/a/metrics.jsonl"))][5:] == [0.001] * 3
    assert load_checkpoint("runs/a").state["windows"] == [5 * 4 + 3 * 8]
    assert training.resume(named_run("a"), display=display).complete  # it is now a setting of the run
    assert load_checkpoint("runs/a").config.optimizer.lr == 0.001


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": {"dim": 64}}, r"model\.dim: 32 -> 64 \(never: the weights belong to the model"),
        ({"model": {"ffn": {"num_experts": 8}}}, r"model\.ffn\.num_experts: 4 -> 8 \(never: the weights"),
        ({"optimizer": {"kind": "adamw"}}, r"optimizer\.kind: .* \(never: the state of one optimizer"),  # T20
        ({"tokenizer": {"kind": "words"}}, r"tokenizer\.kind: .* \(never: the weights belong to the token ids"),  # T21
        ({"data": {"val_fraction": 0.2}}, r"data\.val_fraction: .* \(never: the position in the text"),
        ({"trainer": {"sequence_length": 16}}, r"trainer\.sequence_length: .* \(never: the position in"),
        ({"trainer": {"seed": 4}}, r"trainer\.seed: 0 -> 4 \(never: the text would come in another order"),
    ],
)
def test_override_resume_refuses_what_would_make_it_another_run_and_says_why(
    tiny_config: Make, folder: Path, display: Progress, change: dict[str, Any], why: str
) -> None:
    """T18, T20, T21: the message names only the changes that are refused, not those that are allowed."""
    training.begin(tiny_config(), named_run("a"), stop_at=1, display=display)
    with pytest.raises(UserError, match=why) as error:
        training.resume(named_run("a"), [change, {"losses": {"router_z_loss": 0.5}}], override=True, display=display)
    assert "router_z_loss" not in str(error.value)
    assert "--override-resume" not in str(error.value)
    assert load_checkpoint("runs/a").step == 1


def test_a_resumed_run_may_change_what_leaves_it_the_same_run(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    training.begin(tiny_config(), named_run("a"), stop_at=1, display=display)
    change = {"steps": 4, "checkpoint_every": 2, "eval_every": 3, "device": "auto", "checkpoint_activations": True}
    assert training.resume(named_run("a"), [{"trainer": change}], display=display).step == 4
    assert load_checkpoint("runs/a").config.trainer.steps == 4


@pytest.mark.parametrize(
    "change",
    [lambda text: text[:-300], str.upper, lambda text: "#" + text, lambda text: text[4000:] + text[:4000]],
    ids=["shorter", "other characters", "one more character", "another order"],
)
@pytest.mark.parametrize("kind", ["chars", "words", "bytes"])
def test_resuming_on_another_text_is_refused_and_on_the_old_one_goes_on(
    tiny_config: Make, folder: Path, display: Progress, text_file: Path, kind: str, change: Callable[[str], str]
) -> None:
    """T21: the file has the same name and other content, whatever that does to the vocabulary."""
    old = text_file.read_text()
    Path("text.txt").write_text(old)
    config = tiny_config(data={"sources": ["text.txt"]}, tokenizer={"kind": kind}, trainer={"steps": 2})
    training.begin(config, named_run("a"), stop_at=1, display=display)
    Path("text.txt").write_text(change(old))
    words = r"text\.txt is not the text that runs/a began with: its digest is \w+, expected \w+\. Put the old text back"
    with pytest.raises(UserError, match=words):
        training.resume(named_run("a"), display=display)
    Path("text.txt").write_text(old)
    assert training.resume(named_run("a"), display=display).complete


def test_resuming_with_another_tokenizer_file_is_refused(tiny_config: Make, folder: Path, display: Progress) -> None:
    """T21."""
    training.begin(tiny_config(trainer={"steps": 0}), named_run("first"), display=display)
    old = Path("runs/first/tokenizer.json").read_text()
    Path("own.json").write_text(old)
    config = tiny_config(tokenizer={"kind": "own.json"}, trainer={"steps": 2})
    training.begin(config, named_run("a"), stop_at=1, display=display)
    Path("own.json").write_text(byte_tokenizer().to_str())
    with pytest.raises(UserError, match=r"own\.json is not the tokenizer that runs/a began with: its digest is"):
        training.resume(named_run("a"), display=display)
    Path("own.json").write_text(old)
    assert training.resume(named_run("a"), display=display).complete


def test_a_complete_run_is_left_as_it_is_unless_it_gets_more_steps(
    tiny_config: Make, folder: Path, display: Progress, story: io.StringIO
) -> None:
    training.begin(tiny_config(), named_run("a"), display=display)
    before = Path("runs/a/metrics.jsonl").read_bytes()
    assert training.resume(named_run("a"), display=display).complete
    assert "complete at step 12" in story.getvalue()
    assert Path("runs/a/metrics.jsonl").read_bytes() == before
    assert training.resume(named_run("a"), [{"trainer": {"steps": 14}}], display=display).step == 14


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_run_without_checkpoints_cannot_be_resumed(folder: Path, display: Progress, name: str) -> None:
    (folder / "runs" / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match="the same command without --resume"):
        training.resume(Run(Path("runs") / name), display=display)
