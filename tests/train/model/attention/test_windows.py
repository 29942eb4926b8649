"""Windows: fixed, by length, by the spread of attention, and learned; soft in training, hard at inference.

B batch, T time, D width. A window of w tokens is the token itself and w - 1 before it.
"""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from support.models import B, T, V, even_thresholds, tiny_ids, tiny_model, variant
from torch import Tensor

from adaptive_lm.train.model import ModelConfig, Transformer
from adaptive_lm.train.model.attention.attention import Attention
from adaptive_lm.train.model.attention.rope import RotaryTables, rotate
from adaptive_lm.train.model.attention.window import WindowController, window_by_length, window_levels
from adaptive_lm.train.model.config.rope import RopeConfig
from adaptive_lm.train.model.config.sections import AttentionConfig

ALL_HEADS = torch.tensor(1.0)
FELT = 1e-3
"""A larger change of logits counts as seen: seen tokens move them by 0.4 or more, rounding by 1e-6."""


def one_layer(training: bool = False, **attention: Any) -> Transformer:
    """Build a seeded model of one layer, so that a token sees exactly the tokens in its window."""
    model = Transformer(variant(num_layers=1, attention={"window_least": 2, **attention}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim:
                weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return model.train(training)


def reaches(model: Transformer) -> tuple[Tensor, Tensor]:
    """Return which changes each token sees, (T, T) bool [token, changed], and the token's window (T,)."""
    ids = tiny_ids(batch=1)
    with torch.no_grad():
        before = model(ids)
        felt = torch.zeros(T, T, dtype=torch.bool)
        for j in range(T):
            changed = ids.clone()
            changed[0, j] = (ids[0, j] + 1) % V
            felt[:, j] = (model(changed).logits - before.logits).abs().amax(-1)[0] > FELT
    assert before.routing[0].windows is not None
    return felt, before.routing[0].windows.sizes


@pytest.mark.parametrize("kind", ["fixed", "length", "entropy", "learned"])
def test_a_token_feels_what_its_window_holds_and_nothing_behind_it(kind: str) -> None:
    """The hard edge of inference, token by token and place by place."""
    model = one_layer(window=9, window_kind=kind)
    if kind == "entropy":
        model.layers[0].attention.window_controller.window.fill_(6)
    felt, sizes = reaches(model)
    places = torch.arange(T)
    distance = places[:, None] - places
    expected = (distance >= 0) & (distance < sizes[:, None])
    assert torch.equal(felt, expected)
    assert (len(sizes.unique()) > 1) is (kind in ("length", "learned"))


def test_a_ramp_is_soft_in_training_and_ends_half_its_length_beyond_the_edge() -> None:
    model = one_layer(training=True, window=9, window_kind="learned", window_ramp=4)
    felt, _ = reaches(model)
    with torch.no_grad():
        scores = model(tiny_ids(batch=1)).routing[0].windows.scores
    reach = 2 + (9 - 2) * scores
    places = torch.arange(T)
    distance = places[:, None] - places
    assert torch.equal(felt, (distance == 0) | ((distance > 0) & (distance < reach[:, None] + 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("positions", ["rope", "none"])
def test_attention_under_a_ramp_is_its_formula(positions: str, dtype: torch.dtype) -> None:
    """Each key's share is weighted by how much it is seen, min(max((z - d) / ramp + 1/2, 0), 1); itself wholly."""
    config = variant(
        num_kv_heads=4,
        attention={
            "window": 9, "window_kind": "learned", "window_least": 1, "window_ramp": 8, "positions": positions,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    attention = Attention(config).train()
    for weight in attention.parameters():
        if weight.ndim:
            torch.nn.init.normal_(weight, std=0.3)
    x = torch.randn(B, T, config.dim)
    rotary = RotaryTables(config, RopeConfig())(T)
    given: list[Tensor] = []
    hook = attention.o.register_forward_hook(lambda _, given_, gave: given.append(given_[0].float()))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = attention(x, rotary, None, None, ALL_HEADS)
        reach = 1 + 8 * out.windows.scores.view(B, T)
    hook.remove()
    with torch.no_grad():
        q, (k, v) = attention.q(x), attention.kv(x).chunk(2, -1)
        q, k, v = (part.view(B, T, 4, 8).transpose(1, 2) for part in (q, k, v))
        q, k = attention.q_norm(q), attention.k_norm(k)
        if positions == "rope":
            q, k = rotate(q, rotary), rotate(k, rotary)
    expected = torch.zeros(B, 4, T, 8)
    for b, head, t in torch.cartesian_prod(torch.arange(B), torch.arange(4), torch.arange(T)).tolist():
        how_much = [1.0 if t == j else min(max((reach[b, t].item() - (t - j)) / 8 + 0.5, 0), 1) for j in range(t + 1)]
        raw = (k[b, head, : t + 1] @ q[b, head, t] / 8**0.5).exp() * torch.tensor(how_much)
        expected[b, head, t] = raw / raw.sum() @ v[b, head, : t + 1]
    found = given[0].view(B, T, 4, 8).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.slow
def test_a_learned_window_grows_where_the_loss_wants_what_lies_behind_its_edge() -> None:
    """It learns through the ramp: a task of copying the token 5 places back opens a window that began at 3."""
    torch.manual_seed(0)
    fields = {"window": 12, "window_kind": "learned", "window_least": 2, "window_ramp": 4}
    model = Transformer(variant(num_layers=1, attention=fields, ffn={"routing": "dense", "dim": 40})).train()
    router = model.layers[0].attention.window_router
    with torch.no_grad():
        router.bias.fill_(-2.0)
    descent, sizes = torch.optim.Adam(model.parameters(), lr=0.01), []
    for step in range(250):
        ids = torch.randint(V, (16, T), generator=torch.Generator().manual_seed(step))
        out = model(ids)
        sizes.append(out.routing[0].windows.sizes.float().mean().item())
        loss = torch.nn.functional.cross_entropy(out.logits[:, 6:].flatten(0, 1), ids[:, 1:-5].flatten())
        descent.zero_grad()
        loss.backward()
        descent.step()
    assert sizes[0] < 4
    assert np.mean(sizes[-20:]) > 6


@pytest.mark.parametrize(("share", "least", "most"), [(0.5, 3, 8), (0.3, 2, 30), (1.0, 1, 5), (0.1, 1, 9)])
def test_a_window_by_length_is_a_share_of_the_tokens_so_far_between_least_and_most(
    share: float, least: int, most: int
) -> None:
    fields = {"window": most, "window_kind": "length", "window_least": least, "window_share": share}
    table = window_by_length(variant(attention=fields), 0)
    assert table.dtype == np.int64
    assert table.tolist() == [min(max(math.ceil(share * (n + 1)), least), most) for n in range(32)]


@pytest.mark.parametrize(("least", "most"), [(2, 12), (16, 16), (1, 64), (3, 5)])
def test_a_learned_window_goes_from_least_to_most_in_even_steps_of_15_sizes(least: int, most: int) -> None:
    table = window_levels(variant(attention={"window": most, "window_kind": "learned", "window_least": least}), 0)
    assert table.dtype == np.int64
    assert table.tolist() == [least + step * (most - least) // 14 for step in range(15)]
    assert (table[0], table[-1]) == (least, most)


@pytest.mark.parametrize(
    ("bias", "level"), [(-200.0, 0), (200.0, 14), (0.0, 7), (math.log(8 / 7) - 1e-3, 7), (math.log(8 / 7) + 1e-3, 8)]
)
def test_a_score_is_rounded_down_to_its_level(bias: float, level: int) -> None:
    """Both ends are reached; scores from 7/15 to 8/15 are level 7, so that 1/2, where a router begins, is no border."""
    model = one_layer(window=16, window_kind="learned")
    router = model.layers[0].attention.window_router
    with torch.no_grad():
        router.weight.zero_()
        router.bias.fill_(bias)
        sizes = model(tiny_ids()).routing[0].windows.sizes
    assert (sizes == 2 + level).all()


def test_the_entropy_controller_holds_the_window_at_a_multiple_of_the_spread() -> None:
    controller = WindowController(AttentionConfig(window=64, window_least=4, window_factor=2.0), 64)
    for spread, window in ((5.3, 11), (1.0, 4), (100.0, 64)):
        for _ in range(200):
            controller.observe(torch.full((7,), spread))
        assert controller.window == window
    before = controller.window.clone(), controller.num_updates.clone()
    controller.observe(torch.empty(0))
    assert (controller.window, controller.num_updates) == before


def test_the_entropy_controller_moves_slowly() -> None:
    """One unusual batch does not move it far."""
    controller = WindowController(AttentionConfig(window=64, window_least=1, window_factor=1.0), 64)
    for _ in range(100):
        controller.observe(torch.full((7,), 10.0))
    controller.observe(torch.full((7,), 57.0))
    assert controller.window == 15


@pytest.mark.parametrize("positions", ["rope", "cope"])
def test_the_spread_of_even_attention_is_the_number_of_tokens_seen(positions: str) -> None:
    fields = {"positions": positions, "max_positions": 4, "window": 9, "window_kind": "entropy"}
    model = one_layer(training=True, **fields)
    with torch.no_grad():
        model.layers[0].attention.q_norm.weight.zero_()
        out = model(tiny_ids())
    expected = torch.arange(1, T + 1).clamp(max=9).float().repeat(B)
    torch.testing.assert_close(out.routing[0].windows.spread, expected, rtol=1e-5, atol=0)
    with torch.no_grad():
        assert model.eval()(tiny_ids()).routing[0].windows.spread is None, "only training watches"


def test_a_window_shrinks_where_attention_looks_at_few_tokens_and_stays_where_it_looks_at_many() -> None:
    windows = {}
    for sharpness in (0.0, 12.0):
        model = one_layer(training=True, window=12, window_kind="entropy", window_factor=1.5)
        model.layers[0].attention.q_norm.weight.data.fill_(sharpness)
        for seed in range(60):
            with torch.no_grad():
                model.observe(model(tiny_ids(seed)))
        windows[sharpness] = model.layers[0].attention.window_controller.window.item()
    assert windows[0.0] == 12
    assert windows[12.0] < 5


def test_skipped_tokens_are_not_in_the_window_of_a_layer_that_holds_none_of_them() -> None:
    """Under `none` a window of 4 counts tokens that ran the layer: a change of the fourth of them back is not seen."""
    model = copy.deepcopy(tiny_model("window_none"))
    limits = even_thresholds(4, depth=0.5)
    ids = tiny_ids(batch=1)
    with torch.no_grad():
        runs = [layer.runs for layer in model(ids, limits).routing]
    assert 4 < runs[1].sum() < T
    held = torch.nonzero(runs[1]).flatten()
    attention = model.layers[1].attention
    x = torch.randn(1, T, model.config.dim, generator=torch.Generator().manual_seed(0))
    rotary = model.rotary[0](T)
    with torch.no_grad():
        before = attention(x, rotary, runs[1][None], None, ALL_HEADS).out
        for back, felt in ((3, True), (4, False)):
            changed = x.clone()
            changed[0, held[-1 - back]] += 1
            moved = (attention(changed, rotary, runs[1][None], None, ALL_HEADS).out - before)[0, held[-1]].abs().max()
            assert bool(moved > 1e-4) is felt, back


def test_a_layer_of_no_window_has_none_whatever_the_kind() -> None:
    config: ModelConfig = tiny_model("window_learned").config
    layer = tiny_model("window_learned").layers[0].attention
    assert config.window_of(0) == 0
    assert layer.window_router is None
    with torch.no_grad():
        assert tiny_model("window_learned")(tiny_ids()).routing[0].windows is None


def test_usage_tells_the_mean_window_of_the_layers_that_have_one() -> None:
    model = tiny_model("window_learned")
    with torch.no_grad():
        out = model(tiny_ids(), even_thresholds(4))
    sizes = torch.stack([layer.windows.sizes for layer in out.routing[1:]]).float()
    assert out.usage()["window"].item() == pytest.approx(sizes.mean().item())
