"""Contextual positions in torch: compared with the plain form, with uncounted tokens, in bf16, and in training.

B batch, H query heads, T time, W width of a head, P positions.
"""

import copy

import numpy as np
import pytest
import torch
from reference.attention import Attention
from support.models import CONFIGS, decisions, even_thresholds, tiny_ids, tiny_model
from torch import Tensor

from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.attention.cope import contextual_bias, contextual_bias_plainly

B, H, T, W, P = 2, 3, 11, 8, 6


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Draw q (B, H, T, W), scores (B, H, T, T) and embedding (P, W)."""
    generator = torch.Generator().manual_seed(0)
    shapes = (B, H, T, W), (B, H, T, T), (P, W)
    q, scores, embedding = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, scores, embedding


@pytest.mark.parametrize("skips", [False, True], ids=["all_count", "some_do_not"])
@pytest.mark.parametrize("window", [T, 4])
def test_the_bias_of_every_pair_is_that_of_the_plain_model(window: int, skips: bool) -> None:
    q, scores, embedding = (tensor.double() for tensor in drawn())
    counted = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < (0.6 if skips else 2)
    places = torch.arange(T)
    seen = (places[:, None] >= places) & (places[:, None] - places < window)
    found = contextual_bias(q, scores, (seen & counted[:, None, None]).double(), embedding)
    weights = {"layers.1.attention.position_embedding": embedding.numpy()}
    plain = Attention(weights, CONFIGS["cope"], 1, 1.0, np.float64)
    for b in range(B):
        plain.counted = counted[b].tolist()
        for h in range(H):
            for i in range(T):
                visible = [j for j in range(T) if seen[i, j]]
                expected = plain.cope(q[b, h, i].numpy(), scores[b, h, i, visible].numpy(), visible)
                np.testing.assert_allclose(found[b, h, i, visible].numpy(), expected, atol=1e-12)


def test_a_position_moves_without_a_jump_as_a_gate_opens() -> None:
    """Also where a position passes a whole number, and where it is capped at the last."""
    q, _, embedding = drawn()
    opening = torch.linspace(-9, 9, 2001).double()
    biases = []
    for score in opening:
        scores = torch.full((1, 1, 7, 7), 9.0).double()
        scores[..., 5] = score
        counts = torch.ones(1, 1, 7, 7).double().tril()
        biases.append(contextual_bias(q[:1, :1, :7].double(), scores, counts, embedding.double())[0, 0, 6])
    jumps = torch.stack(biases).diff(dim=0).abs().max()
    assert jumps < 0.02
    assert (torch.stack(biases)[-1] - torch.stack(biases)[0]).abs().max() > 0.5


def test_positions_follow_the_tokens_that_open_gates_and_not_their_number() -> None:
    """Tokens with a closed gate do not increase the distance of their neighbours."""
    q, _, embedding = drawn()
    far, near = torch.full((1, 1, 6, 6), -60.0), torch.full((1, 1, 2, 2), 60.0)
    far[..., 0], far[..., 5] = 60.0, 60.0
    apart = contextual_bias(q[:1, :1, :6], far, torch.ones(6, 6).tril()[None, None], embedding)[0, 0, 5]
    together = contextual_bias(
        torch.cat([q[:1, :1, :1], q[:1, :1, 5:6]], 2), near, torch.ones(2, 2).tril()[None, None], embedding
    )[0, 0, 1]
    torch.testing.assert_close(apart[[0, 5]], together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True], ids=["counts_of_each_text", "counts_of_all"])
def test_its_gradient_is_that_of_the_form_in_the_paper(shared: bool) -> None:
    """Compared with the plain form and finite differences: of queries, scores, positions, and counts."""
    q, scores, embedding = (tensor.double() for tensor in drawn())
    counts = torch.rand(1 if shared else B, 1, T, T, generator=torch.Generator().manual_seed(2)).double().tril()
    tensors = [tensor.requires_grad_() for tensor in (q, scores, counts, embedding)]
    found, expected = contextual_bias(*tensors), contextual_bias_plainly(*tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    of_bias = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).double().tril()  # what is seen
    mine, plain = (torch.autograd.grad(bias, tensors, of_bias) for bias in (found, expected))
    for of_mine, of_plain in zip(mine, plain, strict=True):
        torch.testing.assert_close(of_mine, of_plain, rtol=0, atol=1e-12)
    small = [tensor.detach()[..., :5, :].clone() for tensor in (q[:1, :1], embedding)]
    squares = [tensor.detach()[:1, :1, :5, :5].clone() for tensor in (scores, counts)]
    arguments = [tensor.requires_grad_() for tensor in (small[0], *squares, small[1])]
    assert torch.autograd.gradcheck(lambda *tensors: contextual_bias(*tensors).tril(), arguments)


def test_a_position_held_at_the_last_one_is_moved_by_no_gate() -> None:
    """Twelve open gates and three positions: far keys have the last position, whatever their gates."""
    q = torch.randn(1, 1, 12, W, generator=torch.Generator().manual_seed(0))
    scores = torch.full((1, 1, 12, 12), 5.0, requires_grad=True)
    bias = contextual_bias(q, scores, torch.ones(1, 1, 12, 12).tril(), drawn()[2][:3])
    assert (bias[0, 0, 11, :8] == bias[0, 0, 11, 0]).all()
    (gradient,) = torch.autograd.grad(bias[0, 0, 11, :8].sum(), scores, retain_graph=True)
    assert (gradient == 0).all()
    (gradient,) = torch.autograd.grad(bias[0, 0, 11, 10], scores)
    assert gradient[0, 0, 11, 10:].abs().min() > 0


def test_contextual_positions_stay_float32_under_bf16_autocast() -> None:
    """T43: in bf16 a sum of eight gates is off by 1/32, and with it the place of each token."""
    model = tiny_model("cope")
    biases: list[Tensor] = []

    def spy(q: Tensor, scores: Tensor, counts: Tensor, embedding: Tensor) -> Tensor:
        biases.append(contextual_bias(q, scores, counts, embedding))
        assert {part.dtype for part in (q, scores, counts, embedding)} == {torch.float32}
        return biases[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adaptive_lm.train.model.attention.attention.contextual_bias", spy)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            model(tiny_ids())
    assert {bias.dtype for bias in biases} == {torch.float32}
    assert len(biases) == 4


@pytest.mark.parametrize("name", ["cope_project", "cope_window_project"])
def test_tokens_that_skipped_a_layer_are_attended_to_and_not_counted(name: str) -> None:
    """Counting all of them, as a layer without skipping does, gives another result."""
    model = tiny_model(name)
    counting = copy.deepcopy(model)
    for block in counting.layers:
        block.counts_cells = False
    limits = even_thresholds(4, 0.7, 0.5, 1.0)
    with torch.no_grad():
        mine, others = model(tiny_ids(), limits), counting(tiny_ids(), limits)
    skipped = ~decisions(mine)["layers_run"]
    assert skipped[1].any()
    assert (mine.logits - others.logits).abs().max() > 0.05
    first = skipped[1].long().cumsum(-1).eq(0)  # before the first skip nothing differs
    torch.testing.assert_close(mine.logits[first], others.logits[first], rtol=0, atol=5e-5)


def test_layers_have_the_positions_that_the_config_gives_them() -> None:
    """Swapping two tokens far back changes nothing for a layer without positions, and does for the others."""
    for name, matters in (("top_p", True), ("cope", True), ("entropy_exit_router", False)):
        config = CONFIGS[name].model_copy(update={"num_layers": 1})
        model = Transformer(config.model_copy(update={"attention": config.attention.model_copy(update={"window": 0})}))
        torch.manual_seed(0)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        ids = tiny_ids(batch=1)
        swapped = ids.clone()
        swapped[0, 2], swapped[0, 5] = ids[0, 5], ids[0, 2]
        with torch.no_grad():
            moved = (model.eval()(ids).logits - model(swapped).logits)[0, 6:].abs().max()
        assert bool(moved > 1e-3) is matters, name
