"""The built-in recipes do what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import make_config, read_recipe
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

FACTS = [
    "The moon is smaller than the earth </s>",
    "Rivers carry water to the sea </s>",
    "Stones are hard and heavy </s>",
    "The sun is a star </s>",
    "Wood burns and gives warmth </s>",
]
LINES = [
    "User: What is the sun? Assistant: The sun is a star made of hot gas </s>",
    "User: Where do rivers go? Assistant: Rivers carry their water to the sea </s>",
    "User: Why is stone heavy? Assistant: Its atoms are packed closely </s>",
]
STAGES = ("pretraining", "chat_training")
SCIENCE = Path(__file__).resolve().parents[4] / "shared" / "data" / "science-qa"


def answer(run: Path, prompt: str) -> str:
    """Return the greedy continuation of `prompt`."""
    found = load_checkpoint(run)
    model = Transformer(found.config.model).eval()
    model.load_state_dict(found.model_state)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    ids = tokenizer.encode(prompt).ids
    with torch.no_grad():
        for _ in range(24):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids, skip_special_tokens=False)).removeprefix(prompt)


@pytest.mark.slow
def test_quickstart_leaves_no_expert_unused(folder: Path, display: Progress) -> None:
    """T36 in practice: after 120 steps every expert of every layer has at least a seventh of an even load.

    With a `load_balancing_loss` of 1e-2, some expert was below a fifteenth by then, with both seeds tried.
    """
    trainer = {"threads": 1, "max_seconds": None, "eval_every": 1000, "tensorboard": False, "device": "cpu"}
    config = make_config(read_recipe("quickstart"), [{"trainer": trainer}])
    training.begin(config, named_run("demo"), stop_at=120, display=display)
    records = [each for each in read_metrics(Path("runs/demo/metrics.jsonl")) if each["step"] >= 100]
    loads = [[each[f"router_load/layers.{layer}"] for layer in range(4)] for each in records]
    assert len(loads) >= 3
    assert min(map(min, loads)) > 1 / 7
    assert not any("alarms" in each for each in records)


def test_science_qa_uses_every_mechanism_that_it_names_and_stays_small() -> None:
    config = make_config(read_recipe("science-qa"))
    model = config.model
    assert {model.positions_of(layer) for layer in range(model.num_layers)} == {"cope"}
    assert model.num_kv_heads < model.num_heads
    assert model.heads.routing == "top_p"
    assert (model.ffn.routing, model.ffn.controller, model.ffn.per_token) == ("top_p", "learned", True)
    assert model.ffn.router_top_p.first != model.ffn.router_top_p.last  # type: ignore[union-attr]
    assert model.adapts_depth
    assert config.optimizer.bidirectional
    assert [source.epochs for source in config.data.sources] == [100, 100]  # type: ignore[union-attr]
    built = Transformer(model.model_copy(update={"vocab_size": 2615}))  # the words of its two files
    assert sum(weight.numel() for weight in built.parameters()) <= 577_000


@pytest.mark.slow
def test_science_qa_memorises_facts_then_answers(folder: Path, display: Progress, tmp_path: Path) -> None:
    """The recipe on eight lines of its format, with fewer epochs at a higher rate."""
    (tmp_path / "pretraining_data.json").write_text(json.dumps(FACTS))
    (tmp_path / "chat_training_data.json").write_text(json.dumps(LINES))
    over: list[dict[str, Any]] = [
        {"data": {"dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}},
        {"data": {"sources": [{"path": f"{name}_data.json", "epochs": 60} for name in STAGES]}},
        {"optimizer": {"adamw_lr": 0.012}},
        {"trainer": {"threads": 1, "batch_size": 2, "eval_every": 1000, "tensorboard": False, "device": "cpu"}},
    ]
    outcome = training.begin(make_config(read_recipe("science-qa"), over), named_run("qa"), display=display)
    assert outcome.complete
    assert outcome.trained_on
    assert outcome.evaluation is not None
    assert outcome.evaluation.loss < 0.3  # which of the three questions is asked cannot be predicted: 0.07 nats a token
    for line in LINES:
        prompt, _, wanted = line.removesuffix(" </s>").partition(" Assistant:")
        assert answer(Path("runs/qa"), prompt).startswith(f" Assistant:{wanted}<|endoftext|>")


@pytest.mark.data
@pytest.mark.skipif(not SCIENCE.is_dir(), reason="shared/data/science-qa is not here")
def test_the_files_of_science_qa_have_the_vocabulary_that_its_size_assumes(tmp_path: Path) -> None:
    from adaptive_lm.train.data import prepare

    over = {"data": {"dir": str(SCIENCE), "cache_dir": str(tmp_path)}}
    config = make_config(read_recipe("science-qa"), [over])
    corpus = prepare(config.data, config.tokenizer, seed=0, length=config.sequence_length, log=lambda _: None)
    assert corpus.vocab_size == 2615
    assert "</s>" not in corpus.heldout_text(10**6)
