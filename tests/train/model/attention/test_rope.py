"""Rotary positions: the tables are those of transformers, beyond the original context too, and layers share them."""

import math
from typing import Any

import pytest
import torch
from support.models import variant
from torch import Tensor

from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.attention.rope import attention_factor, rotary_tables, rotate, scaled
from adaptive_lm.train.model.config.rope import RopeConfig

ORIGINAL, HEAD = 64, 32
SHORT, LONG = [1.0 + 0.05 * i for i in range(HEAD // 2)], [1.0 + 0.7 * i for i in range(HEAD // 2)]
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "linear": ({"factor": 4.0}, {"factor": 4.0}),
    "llama3": (
        {"factor": 8.0, "original_context": ORIGINAL, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0},
        {"factor": 8.0, "original_max_position_embeddings": ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "yarn": (
        {"factor": 4.0, "original_context": ORIGINAL},
        {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    ),
    "yarn_set": (
        {"factor": 3.0, "original_context": ORIGINAL, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3},
        {"factor": 3.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 8.0, "beta_slow": 2.0,
         "attention_factor": 1.3},
    ),
    "longrope": (
        {"factor": 4.0, "original_context": ORIGINAL, "short_factors": SHORT, "long_factors": LONG},
        {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, "short_factor": SHORT, "long_factor": LONG},
    ),
}  # fmt: skip
"""Our fields and those of transformers."""


def rope_of(kind: str, **fields: Any) -> RopeConfig:
    own = "none" if kind == "default" else kind.partition("_")[0]
    return RopeConfig.model_validate({**fields, "scaling": {"kind": own, **KINDS[kind][0]}})


def tables_of(rope: RopeConfig, context: int) -> tuple[Tensor, Tensor]:
    return rotary_tables(variant(context_length=context, head_dim=HEAD, attention={"rope": rope}), rope)


def theirs(kind: str, theta: float, share: float, context: int, time: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin (T, R / 2) of transformers for one forward pass over `time` tokens."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    phi = kind in ("default", "longrope")  # Phi's config takes no others, Llama's plain positions rotate whole heads
    config = (transformers.Phi3Config if phi else transformers.LlamaConfig)(
        hidden_size=4 * HEAD, num_attention_heads=4, max_position_embeddings=context, pad_token_id=0,
        original_max_position_embeddings=ORIGINAL, partial_rotary_factor=share,
        rope_parameters={"rope_type": kind.partition("_")[0], "rope_theta": theta, "partial_rotary_factor": share,
                         **KINDS[kind][1]},
    )  # fmt: skip
    embedding = Phi3RotaryEmbedding if phi else LlamaRotaryEmbedding
    cos, sin = embedding(config)(torch.zeros(1), torch.arange(time)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half], sin[0, :, :half]


@pytest.mark.parametrize("theta", [10_000.0, 500.0])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_those_of_transformers_up_to_four_times_the_original_context(kind: str, theta: float) -> None:
    """Transformers computes angles in float32, which is wrong by some 1e-5 at these positions."""
    context = 4 * ORIGINAL
    expected = theirs(kind, theta, 1.0, context, context)
    for own, other in zip(tables_of(rope_of(kind, theta=theta), context), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-4)
    if kind != "default":  # and the kinds differ
        assert (expected[0] - tables_of(rope_of("default", theta=theta), context)[0]).abs().max() > 0.5


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_a_share_of_the_components_has_the_frequencies_of_a_smaller_head(kind: str) -> None:
    context = 4 * ORIGINAL
    own = tables_of(rope_of(kind, share=0.5), context)
    for one, other in zip(own, theirs(kind, 10_000.0, 0.5, context, context), strict=True):
        assert one.shape == (context, HEAD // 4)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_a_context_up_to_the_original_takes_the_short_factors_as_transformers_does_there() -> None:
    """And with a longer context every text takes the long ones, which transformers does only for long texts."""
    for context, expected in ((ORIGINAL, ORIGINAL), (ORIGINAL + 1, ORIGINAL + 1), (4 * ORIGINAL, 4 * ORIGINAL)):
        for own, other in zip(
            tables_of(rope_of("longrope"), context),
            theirs("longrope", 10_000.0, 1.0, 4 * ORIGINAL, expected),
            strict=True,
        ):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-4)


def test_llama_3_1_keeps_short_waves_divides_long_ones_and_blends_between() -> None:
    """The published numbers: theta 500,000, factor 8, 8,192 tokens, factors 1 and 4."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = {"kind": "llama3", "factor": 8.0, "original_context": 8192}
    rope = RopeConfig.model_validate({"theta": 500_000.0, "scaling": fields})
    plain = 500_000.0 ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    own = scaled(plain, rope, 131_072)
    config = transformers.LlamaConfig(
        head_dim=128, max_position_embeddings=131_072,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    )  # fmt: skip
    other, factor = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    torch.testing.assert_close(own, other.double(), rtol=2e-6, atol=0)
    assert factor == attention_factor(rope.scaling) == 1
    kinds = {"kept": own == plain, "divided": own == plain / 8}
    kinds["blended"] = ~kinds["kept"] & ~kinds["divided"]
    assert all(bool(these.any()) for these in kinds.values())


def test_attention_is_scaled_as_the_papers_say_where_no_factor_is_given() -> None:
    assert attention_factor(rope_of("yarn").scaling) == pytest.approx(0.1 * math.log(4) + 1)
    assert attention_factor(rope_of("longrope").scaling) == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))
    assert attention_factor(rope_of("yarn_set").scaling) == 1.3


def test_components_behind_the_share_are_not_turned() -> None:
    x = torch.randn(1, 2, 5, HEAD, generator=torch.Generator().manual_seed(0))
    cos, sin = tables_of(rope_of("default", share=0.25), 8)
    turned = rotate(x, (cos[:5], sin[:5]))
    assert torch.equal(turned[..., 8:], x[..., 8:])
    whole = rotate(x[..., :8].contiguous(), (cos[:5], sin[:5]))
    assert torch.equal(turned[..., :8], whole)
    assert not torch.equal(turned[..., 1:, :8], x[..., 1:, :8])


def test_layers_with_the_same_positions_share_their_tables() -> None:
    near, far = {"theta": 500.0}, {"theta": 9000.0}
    model = Transformer(variant(attention={"rope": (near, far, near, far)}))
    assert model.rotary_of == [0, 1, 0, 1]
    assert len(model.rotary) == 2
    mixed = Transformer(
        variant(attention={"rope": (near, far, near, far), "positions": ("none", "rope", "cope", "rope")})
    )
    assert mixed.rotary_of == [None, 0, None, 0]
    assert not any("rotary" in name for name in mixed.state_dict())
