"""The sizes and factors of a decoder of Llama's kind, from its config.json."""

import math

from .families import Bias, Family
from .settings import LARGEST_CONTEXT, Settings


class DecoderShape:
    """The sizes of a decoder, its biases, its layers without experts, and the factors that fold into its weights.

    Args:
        settings: Its config.json.
        family: Its family.
    """

    def __init__(self, settings: Settings, family: Family) -> None:
        self.settings, self.family = settings, family
        self.dim = settings.integer("hidden_size")
        self.layers = settings.integer("num_hidden_layers", most=4096)
        self.heads = settings.integer("num_attention_heads")
        self.kv_heads = settings.integer("num_key_value_heads", self.heads)
        self.head_dim = settings.integer("head_dim", family.head_dim or max(self.dim // self.heads, 1))
        self.hidden = settings.integer("intermediate_size")
        self.vocab = settings.integer("vocab_size")
        self.context = settings.integer("max_position_embeddings", family.context, least=8, most=LARGEST_CONTEXT)
        self.tied = settings.flag("tie_word_embeddings", family.tied)
        self.qkv_bias, self.o_bias = self._bias(family.qkv_bias), self._bias(family.o_bias)
        self.ffn_bias = self._bias(family.ffn_bias)
        self.experts = family.experts
        self.num_experts = self._count() if self.experts else 0
        self.expert_dim = settings.integer(self.experts.width) if self.experts else 0
        self.shared_dim = self._shared_dim()
        self.dense = self.experts.dense(settings, self.layers) if self.experts else list(range(self.layers))
        # factors that fold into the weights
        self.query_scale, self.residual_scale, self.logits_scale, self.embedding_scale = 1.0, 1.0, 1.0, 1.0
        self._read_factors()

    def _count(self) -> int:
        """Return the number of experts; transformers 5 writes some families by another name."""
        assert self.experts is not None
        name = self.experts.count
        return self.settings.integer(name if self.settings.has(name) else self.experts.also)

    def _bias(self, bias: Bias) -> bool:
        return self.settings.flag(bias) if isinstance(bias, str) else bias

    def _shared_dim(self) -> int:
        if self.experts is None or self.experts.shared is None:
            return 0
        shared = self.experts.shared
        if shared.counted:
            return self.settings.integer(shared.width, 0, least=0) * self.expert_dim
        return self.settings.integer(shared.width, 0, least=0)

    def _read_factors(self) -> None:
        settings, family = self.settings, self.family
        usual = self.head_dim**-0.5
        if family.adds_one:
            self.embedding_scale = math.sqrt(self.dim)
            if family.softcaps:
                self.query_scale = settings.positive("query_pre_attn_scalar", 256) ** -0.5 / usual
        if family.multipliers:
            self.embedding_scale = settings.positive("embedding_multiplier", 1)
            self.query_scale = settings.positive("attention_multiplier", 1) / usual
            self.residual_scale = settings.number("residual_multiplier", 1)
            self.logits_scale = settings.positive("logits_scaling", 1)
