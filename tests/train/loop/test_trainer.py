"""The loop: gradients, accumulation, clipping, numbers that are not finite, time (T30-T33, T37, T38, T40)."""

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.operators.compiler import needs_compiler
from torch import Tensor

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.data import Batch, Corpus, prepare
from adaptive_lm.train.loop import curriculum
from adaptive_lm.train.loop.figures.record import StepResult
from adaptive_lm.train.loop.setup.completion import with_vocabulary
from adaptive_lm.train.loop.trainer import Trainer
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.optim.optimizer import Optimizers
from adaptive_lm.train.run.counters import Counters
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import Metrics, read_metrics
from adaptive_lm.train.system.progress import Progress
from adaptive_lm.train.system.randomness import seed_all

Make = Callable[..., RunConfig]

NO_EXTRA_LOSSES = {"load_balancing_loss": 0, "router_z_loss": 0, "router_entropy_loss": 0}
FIXED = {"ffn": {"controller": "fixed"}}


@pytest.fixture
def build(tiny_config: Make, folder: Path, display: Progress) -> Iterator[Callable[..., Trainer]]:
    """Make a trainer; the test may run its loop or single steps."""
    made: list[Trainer] = []

    def make(**sections: dict[str, Any]) -> Trainer:
        torch.set_num_threads(1)
        config = tiny_config(**sections)
        corpus = prepare(config.data, config.tokenizer, seed=0, log=lambda _: None)
        config = with_vocabulary(config, corpus)
        seed_all(config.trainer.seed)
        model = Transformer(config.model)
        run = named_run("a")
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        made.append(Trainer(
            config, run, model, corpus, Optimizers(model, config.optimizer), precision=config.trainer.precision,
            metrics=Metrics(run.path, 0), display=display, counters=Counters(), identity={},
        ))  # fmt: skip
        return made[-1]

    yield make
    for each in made:
        each.metrics.close()


def gradients(one: Trainer) -> tuple[StepResult, dict[str, Tensor]]:
    """Return the result of a step and its gradients, before anything is clipped or updated."""
    kept: dict[str, Tensor] = {}

    def keep() -> float:
        kept.update({name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None})
        return 1.0

    one.update.clip = keep  # type: ignore[method-assign]
    one.optimizers.step = lambda: None  # type: ignore[method-assign]
    return one.update.step(one.shape), kept


def ragged(self: Corpus, first: int, batch_size: int, length: int) -> Batch:
    """Draw a batch in which every sequence scores a different number of tokens, one of them none."""
    generator = np.random.default_rng(first)
    ids = generator.integers(0, self.vocab_size, (batch_size, length + 1))
    scored = np.arange(length)[None, :] < (np.arange(batch_size) * 4)[:, None]
    return Batch(ids[:, :-1], ids[:, 1:], scored)


def test_eight_micro_batches_of_one_equal_one_of_eight(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """T40: gradients are weighted by scored tokens, not by sequences."""
    monkeypatch.setattr(Corpus, "batch", ragged)
    whole, expected = gradients(build(losses=NO_EXTRA_LOSSES, model=FIXED, trainer={"batch_size": 8}))
    sections = {"losses": NO_EXTRA_LOSSES, "model": FIXED, "trainer": {"batch_size": 8, "micro_batches": 8}}
    parts, found = gradients(build(**sections))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert parts.parts["cross_entropy"] == pytest.approx(whole.parts["cross_entropy"], rel=1e-5)
    assert parts.parts["experts_per_token"] == pytest.approx(whole.parts["experts_per_token"], rel=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_recomputed_activations_give_the_same_loss_gradients_and_routes(
    build: Callable[..., Trainer], micro_batches: int
) -> None:
    """T38, with accumulation, to the last bit."""
    depth = {"num_layers": 3, "depth": {"layers_share": 0.6, "exit_layers": [1]}}
    kept, expected = gradients(build(model=depth, trainer={"micro_batches": micro_batches}))
    again = {"micro_batches": micro_batches, "checkpoint_activations": True}
    computed, found = gradients(build(model=depth, trainer=again))
    assert computed.parts == kept.parts
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_the_logged_gradient_norm_is_the_one_before_clipping(build: Callable[..., Trainer]) -> None:
    """T33."""
    _, raw = gradients(build())
    true_norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in raw.values()))
    one = build(optimizer={"clip_norm": true_norm / 7})
    clipped: list[float] = []
    step = one.optimizers.step

    def look() -> None:
        clipped.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in one.model.parameters())))
        step()

    one.optimizers.step = look  # type: ignore[method-assign]
    assert one.update.step(one.shape).grad_norm == pytest.approx(true_norm, rel=1e-5)
    assert clipped == [pytest.approx(true_norm / 7, rel=1e-4)]


def test_the_layers_rates_are_balanced_by_the_gradients_before_they_are_clipped(build: Callable[..., Trainer]) -> None:
    _, raw = gradients(build())
    first = sum(float(g.double().square().sum()) for name, g in raw.items() if name.startswith("layers.0.")) ** 0.5
    one = build(optimizer={"bidirectional": True, "target_norm": first * 4, "clip_norm": first / 100})
    one.update.step(one.shape)
    assert one.optimizers.factors["layers.0"] == pytest.approx(2.0, rel=1e-4)
    record = one.records.record(StepResult(), None, 1.0, 1.0)
    assert record["lr_factor_least"] <= 2.0 <= record["lr_factor_most"]


def test_a_clip_norm_of_zero_does_not_clip(build: Callable[..., Trainer]) -> None:
    _, raw = gradients(build())
    one = build(optimizer={"clip_norm": 0})
    seen: dict[str, Tensor] = {}
    one.optimizers.step = lambda: seen.update({n: p.grad.clone() for n, p in one.model.named_parameters()})  # type: ignore[method-assign]
    one.update.step(one.shape)
    assert all(torch.equal(seen[name], gradient) for name, gradient in raw.items())


def poison(where: str, steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss, or only the gradient, of some steps (0, 1, ...) not finite."""
    compute, calls = curriculum.training_loss, iter(range(1000))

    def poisoned(*arguments: Any, **options: Any) -> Any:
        loss, parts = compute(*arguments, **options)
        if next(calls) not in steps:
            return loss, parts
        if where == "loss":
            return loss * float("nan"), parts
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss, parts

    monkeypatch.setattr(curriculum, "training_loss", poisoned)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    build: Callable[..., Trainer], story: io.StringIO, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """T30, T32."""
    one = build()
    one.update.step(one.shape)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}  # controllers too
    slots = {name: value.clone() for name, value in one.optimizers.state_tensors().items()}
    poison(where, {0}, monkeypatch)
    result = one.update.step(one.shape)
    one.check(result)
    assert result.skipped
    assert all(torch.equal(before[name], value) for name, value in one.model.state_dict().items())
    assert all(torch.equal(slots[name], value) for name, value in one.optimizers.state_tensors().items())
    assert (one.counters.bad_steps, len(one.update.guard.failed)) == (1, 1)
    assert f"the {where} is not finite; the step is skipped" in story.getvalue()
    result = one.update.step(one.shape)
    one.check(result)
    assert not result.skipped
    assert (one.counters.bad_steps, len(one.update.guard.failed)) == (1, 0)


def test_too_many_bad_steps_in_a_row_end_the_run_with_a_clear_error(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T31: ten in a row, after some that were not in a row; the error names the data of each."""
    poison("loss", {1, 3, *range(6, 100)}, monkeypatch)
    words = (
        r"(?s)steps 7 to 16, 10 in a row.*the weights are those of step 6.*step 7: the loss is not finite \(.*rivers"
    )
    with pytest.raises(UserError, match=words + r"\.txt windows 24-27\).*step 16: .* windows 60-63\)"):
        training.begin(tiny_config(trainer={"steps": 30}), named_run("a"), display=display)
    records = read_metrics(Path("runs/a/metrics.jsonl"))
    assert [record["step"] for record in records if record.get("skipped")] == [2, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert all(record["loss"] is None or math.isfinite(record["loss"]) for record in records)


def test_a_spike_is_skipped_but_not_where_the_text_changes(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    """T32: the step after 128 usual ones has a hundred times their gradient; a new text may have it."""
    sources = [{"path": str(text_file), "epochs": 2}, str(text_file)]
    one = build(data={"sources": sources, "val": str(text_file)}, trainer={"steps": 500})
    border = one.corpus.stage(10**6, 32)[0] // 4
    for _ in range(128):
        one.update.guard.accept(3.0, 1.0)
    compute = curriculum.training_loss

    def huge(*arguments: Any, **options: Any) -> Any:
        loss, parts = compute(*arguments, **options)
        return loss * 100, parts

    monkeypatch.setattr(curriculum, "training_loss", huge)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    for step in (border - 1, border):
        one.counters.windows = [4 * step]
        one.shape = one.lengths.shape(one.counters, 0.0)
        result = one.update.step(one.shape)
        moved = not all(torch.equal(before[name], value) for name, value in one.model.state_dict().items())
        assert moved is (step == border)
        assert ("is a spike" in str(result.problem)) is (step == border - 1)


def test_an_evaluation_changes_neither_weights_nor_controllers(build: Callable[..., Trainer]) -> None:
    """T37."""
    one = build()
    one.update.step(one.shape)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    found = one.evaluate(None)
    assert found is not None
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert one.model.training
    assert all(torch.equal(before[name], value) for name, value in one.model.state_dict().items())


def test_an_evaluation_is_the_mean_over_all_scored_tokens(build: Callable[..., Trainer]) -> None:
    one = build()
    found = one.evaluate(None)
    nats = tokens = 0.0
    one.model.eval()
    for window in one.corpus.val_windows(32, 1, None):  # one by one, with no padding rows
        with torch.no_grad():
            logits = one.model(torch.from_numpy(window.ids)).logits[0].double()
        right = logits.log_softmax(-1)[torch.arange(32), torch.from_numpy(window.targets[0])]
        nats -= float(right[torch.from_numpy(window.loss_mask[0])].sum())
        tokens += int(window.loss_mask.sum())
    assert found is not None
    assert found.tokens == tokens
    assert found.loss == pytest.approx(nats / tokens, rel=1e-5)


def test_training_learns_and_holds_the_number_of_experts(tiny_config: Make, folder: Path, display: Progress) -> None:
    """T35."""
    sections = {"trainer": {"steps": 150, "eval_every": 1000, "checkpoint_every": 1000}}
    outcome = training.begin(tiny_config(**sections), named_run("a"), display=display)
    records = read_metrics(Path("runs/a/metrics.jsonl"))
    first, last = records[0]["loss"], np.mean([record["loss"] for record in records[-10:]])
    assert last < 0.6 * first
    assert outcome.evaluation is not None
    assert outcome.evaluation.loss < 0.6 * first
    settled = [record["experts_per_token"] for record in records[50:]]
    assert np.mean(settled) == pytest.approx(1.6, abs=0.15)
    assert outcome.evaluation.experts_per_token == pytest.approx(1.6, abs=0.2)


def test_the_budget_of_time_ends_the_run_with_its_last_save_inside(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    config = tiny_config(trainer={"steps": None, "max_seconds": 2.0})
    outcome = training.begin(config, named_run("a"), display=display)
    records = read_metrics(Path("runs/a/metrics.jsonl"))
    assert outcome.complete
    assert 1.0 < records[-1]["seconds"] < 2.2  # the clock of a busy machine may overrun by a step
    peak = max(record["lr"] for record in records)  # the schedule follows the clock: up, then down to nearly 0
    assert records[0]["lr"] < 0.1 * peak
    assert records[-1]["lr"] < 0.1 * peak


def test_a_resumed_run_has_only_the_time_that_is_left(tiny_config: Make, folder: Path, display: Progress) -> None:
    config = tiny_config(trainer={"steps": None, "max_seconds": 3.0})
    training.begin(config, named_run("a"), stop_at=20, display=display)
    used = read_metrics(Path("runs/a/metrics.jsonl"))[-1]["seconds"]
    training.resume(named_run("a"), display=display)
    seconds = [record["seconds"] for record in read_metrics(Path("runs/a/metrics.jsonl"))]
    assert used > 0.1
    assert seconds == sorted(seconds)
    assert seconds[-1] < 3.3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself: deprecated parts, gradients of non-leaves
@needs_compiler
def test_a_compiled_model_trains_and_its_run_resumes_without_compiling(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    """T22, T39. Later losses may differ by more than rounding: a last bit may move a token over a threshold."""
    one_layer = {"num_layers": 1}
    config = tiny_config(trainer={"compile": True, "steps": 4}, model=one_layer)
    training.begin(config, named_run("a"), stop_at=3, display=display)
    assert training.resume(named_run("a"), [{"trainer": {"compile": False}}], display=display).complete
    training.begin(tiny_config(trainer={"steps": 4}, model=one_layer), named_run("b"), display=display)
    losses = [[record["loss"] for record in read_metrics(Path(f"runs/{name}/metrics.jsonl"))] for name in "ab"]
    np.testing.assert_allclose(losses[0][:1], losses[1][:1], rtol=1e-6)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
