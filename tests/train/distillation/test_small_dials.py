"""Self-distillation: what its losses are, and what they leave alone."""

from typing import Any

import pytest
import torch
from support.models import B, T, V, season, variant
from torch import Tensor

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.config.distillation import SelfDistillationConfig
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.distillation.kl import forward_kl, whole_classes
from adaptive_lm.train.distillation.lessons import Part
from adaptive_lm.train.distillation.small_dials import SmallDials, lowered
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.output import ModelOutput

DEPTH = {"layers_share": 0.7, "exit_layers": (0, 2)}


def small(**settings: Any) -> SmallDials:
    return SmallDials(SelfDistillationConfig(**settings), seed=3)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(variant(depth=DEPTH, heads={"routing": "top_p", "heads_per_token": 3}))
    season(model, 0)
    return model.train()


@pytest.fixture
def batch() -> Part:
    generator = torch.Generator().manual_seed(1)
    scored = torch.ones(B, T, dtype=torch.bool)
    scored[1, 5:] = False
    ids = torch.randint(V, (B, T), generator=generator)
    return Part(ids, torch.zeros_like(ids), scored, torch.tensor([7, 8]))


def losses(dials: SmallDials, model: Transformer, out: ModelOutput, batch: Part) -> dict[str, Tensor]:
    return dials.losses(model, out, batch, step=4, recompute=False)


def gradients(model: Transformer, loss: Tensor) -> dict[str, Tensor | None]:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True), strict=True))


@pytest.mark.parametrize("settings", [{"exits": 1.0}, {"dials": 1.0, "sequences": 1.0}], ids=["exits", "dials"])
def test_the_full_dial_gets_no_gradient_as_a_teacher(
    model: Transformer, batch: Part, settings: dict[str, float]
) -> None:
    out = model(batch.ids)
    (loss,) = losses(small(**settings), model, out, batch).values()
    (direct,) = torch.autograd.grad(loss, [out.logits], allow_unused=True, retain_graph=True)
    assert direct is None
    copied = out._replace(logits=out.logits.detach().clone())  # any teacher with these outputs teaches the same
    (again,) = losses(small(**settings), model, copied, batch).values()
    for name, gradient in gradients(model, loss).items():
        other = gradients(model, again)[name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            torch.testing.assert_close(gradient, other, msg=name)


def test_the_loss_of_exits_is_the_mean_distance_of_their_logits(model: Transformer, batch: Part) -> None:
    out = model(batch.ids)
    expected = [
        forward_kl(whole_classes(out.logits, model.logits(hidden), 1.0))[batch.scored].mean()
        for hidden in out.exit_hidden.values()
    ]
    assert len(expected) == 2
    (loss,) = losses(small(exits=1.0), model, out, batch).values()
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_the_loss_of_dials_is_that_of_a_pass_at_lower_thresholds(model: Transformer, batch: Part) -> None:
    out, dials = model(batch.ids), small(dials=1.0, sequences=0.5)
    narrow = model(batch.ids[:1], lowered(model.default_thresholds(), dials.draw(4)))
    expected = forward_kl(whole_classes(out.logits[:1], narrow.logits, 1.0))[batch.scored[:1]].mean()
    (loss,) = losses(dials, model, out, batch).values()
    torch.testing.assert_close(loss, expected)
    assert loss.item() > 0


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.7, 1.0])
def test_the_share_of_sequences_is_the_same_however_ranks_divide_them(share: float) -> None:
    dials, windows = small(dials=1.0, sequences=share), torch.arange(1000, 1100)
    whole = windows[dials.chosen(windows)[0]].tolist()
    by_rank = [windows_of_rank[rows] for windows_of_rank in windows.split(4) for rows, counts in
               [dials.chosen(windows_of_rank)] if counts]  # fmt: skip
    assert whole == torch.cat(by_rank).tolist()
    assert len(whole) == pytest.approx(100 * share, abs=1)


def test_a_rank_without_sequences_of_the_second_pass_runs_one_that_does_not_count(
    model: Transformer, batch: Part
) -> None:
    dials = small(dials=1.0, sequences=0.1)
    (loss,) = losses(dials, model, model(batch.ids), batch._replace(windows=torch.tensor([1, 2]))).values()
    assert loss.item() == 0


def test_lower_thresholds_run_less(model: Transformer, batch: Part) -> None:
    full = model.default_thresholds()

    def usage(factors: list[float]) -> dict[str, float]:
        return {name: float(value) for name, value in model(batch.ids, lowered(full, factors)).usage().items()}

    everything = usage([1.0] * 4)
    assert everything == {name: float(value) for name, value in model(batch.ids).usage().items()}
    assert usage([0.0, 1.0, 1.0, 1.0])["experts_per_token"] == 1
    assert usage([1.0, 0.0, 1.0, 1.0])["heads_per_token"] == 1
    assert usage([1.0, 1.0, 0.0, 1.0])["layers_per_token"] == 2  # the first and the last have no router
    assert usage([1.0, 1.0, 1.0, 0.0])["layers_per_token"] == 1
    half = usage([0.5, 0.5, 0.5, 1.0])
    assert all(half[name] < everything[name] for name in everything)


def test_draws_depend_on_the_seed_and_the_step_alone() -> None:
    state, dials = torch.get_rng_state(), small(dials=1.0, least=0.25)
    drawn = [dials.draw(step) for step in range(100)]
    assert drawn == [small(dials=1.0, least=0.25).draw(step) for step in range(100)]
    assert len({tuple(each) for each in drawn}) == 100
    values = torch.tensor(drawn)
    assert 0.25 <= values.min() < 0.3 < 0.95 < values.max() <= 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("section", "model", "message"),
    [
        ({}, {}, "exits and dials are both 0: set one of them"),
        ({"exits": 1.0}, {}, "exit_layers is empty: name the layers"),
        ({"dials": 1.0}, {"ffn": {"routing": "dense"}}, "no threshold to lower"),
        ({"dials": 1.0}, {"ffn": {"routing": "top_k", "experts_per_token": 2}}, "no threshold to lower"),
    ],
)
def test_a_section_without_effect_is_refused(section: dict[str, Any], model: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config({"self_distillation": section, "model": model})
