"""Decoders of Llama's kind: their config in ours, by the table of families."""

from typing import Any

from ...run.checkpoints.tensor_file import LazyTensor
from ..errors import UnsupportedModelError
from ..source import Claims
from .activation import activation_of
from .decoder_shape import DecoderShape
from .decoder_tensors import DecoderTensors
from .rope import Rope, rope_of, ropes_by_kind
from .settings import LARGEST_CONTEXT, missing_feature


class Decoder(DecoderShape):
    """The config of a decoder, and its tensors.

    Args:
        settings: Its config.json.
        family: Its family.
    """

    prefixes = ("model.language_model.", "language_model.model.", "model.", "")
    first = "embed_tokens.weight"
    head = "lm_head.weight"

    def config(self) -> dict[str, Any]:
        """Return the sections of our config."""
        settings, family = self.settings, self.family
        rope = self._rope()
        attention: dict[str, Any] = {
            "positions": self._positions(),
            "rope": rope,
            "qk_norm": family.qk_norm,
            "qkv_bias": self.qkv_bias,
            "o_bias": self.o_bias,
            "window": self._windows(),
        }
        if family.softcaps:
            attention["softcap"] = settings.number("attn_logit_softcapping", 0)
        return {
            "vocab_size": self.vocab,
            "context_length": self._context(rope),
            "dim": self.dim,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "num_kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "norm_eps": settings.number("rms_norm_eps", family.epsilon),
            "norm_place": family.norm_place,
            "tie_embeddings": self.tied,
            "embedding_scale": self.embedding_scale,
            "logits_softcap": settings.number("final_logit_softcapping", 0) if family.softcaps else 0.0,
            "attention": attention,
            "ffn": self._ffn(),
        }

    def notes(self) -> list[str]:
        """Return lines for the user."""
        rope = self._rope()
        scaling = rope.get("scaling", {}) if isinstance(rope, dict) else {}
        if scaling.get("kind") != "longrope" or self.context <= scaling["original_context"]:
            return []
        short = scaling["original_context"]
        note = (
            f"the positions of this model (longrope) are those for texts of more than {short} tokens, also in shorter "
            f"ones; --context {short} takes those for short texts"
        )
        return [note]

    def _rope(self) -> Rope | list[Rope]:
        family = self.family
        if not family.local_theta:
            return rope_of(self.settings, theta=family.theta, context=self.context)
        kinds = ropes_by_kind(self.settings, theta=family.theta, local_theta=family.local_theta, context=self.context)
        return [kinds["sliding_attention" if windowed else "full_attention"] for windowed in self._has_window()]

    def _context(self, rope: Rope | list[Rope]) -> int:
        """Return the longest text: under YaRN, `max_position_embeddings` may still be that before scaling."""
        first = rope[0] if isinstance(rope, list) else rope
        scaling = first.get("scaling", {})
        if scaling.get("kind") != "yarn":
            return self.context
        longest = max(self.context, scaling["factor"] * scaling["original_context"])
        if longest > LARGEST_CONTEXT:
            raise self.settings.refused("rope_scaling", scaling, f"a context of at most {LARGEST_CONTEXT} tokens")
        return int(longest)

    def _positions(self) -> str | list[str]:
        if not self.family.without_rope:
            return "rope"
        each = self.settings.integer("no_rope_layer_interval", 4)
        uses = self.settings.integers("no_rope_layers", self.layers)
        if uses is None:
            uses = [(layer + 1) % each for layer in range(self.layers)]
        return ["rope" if use else "none" for use in uses]

    def _has_window(self) -> list[bool]:
        """Return for each layer whether it has the window."""
        kinds = self.settings.raw("layer_types")
        if kinds is None:
            rule = self.family.windows
            return [True] * self.layers if rule is None else rule(self.settings, self.layers)
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != self.layers:
            raise self.settings.refused("layer_types", kinds, f"a list of {self.layers} kinds")
        for kind in kinds:
            if kind not in known:
                raise missing_feature(self.settings.place, "layer_types", kind, "layers of that kind")
        return [kind == "sliding_attention" for kind in kinds]

    def _windows(self) -> int | list[int]:
        window = self.settings.integer("sliding_window", self.family.window or 0, least=0)
        has_window = self._has_window()  # checks the kinds of layers, also where there is no window
        given = "sliding_window" not in self.settings.values or self.settings.has("sliding_window")
        if not given or (self.family.switched and not self.settings.flag("use_sliding_window")):
            window = 0
        if not window:
            return 0
        windows = [window if has else 0 for has in has_window]
        return windows[0] if len(set(windows)) == 1 else windows

    def _ffn(self) -> dict[str, Any]:
        settings, experts = self.settings, self.experts
        default = settings.text("hidden_act", self._default_activation())
        activation = activation_of(settings, self.family.activation, default)
        if self.family.adds_one and activation == "gelu":
            activation = "gelu_tanh"  # the first Gemma states gelu, and was trained with its approximation by tanh
        ffn: dict[str, Any] = {"activation": activation, "bias": self.ffn_bias}
        if experts is None:
            return {**ffn, "routing": "dense", "dim": self.hidden}
        chosen = settings.integer("num_experts_per_tok", most=self.num_experts)
        renormalize = experts.renormalize
        ffn |= {
            "routing": "top_p",
            "controller": "fixed",
            "router_top_p": 1.0,
            "num_experts": self.num_experts,
            "most_experts": chosen,
            "experts_per_token": float(chosen),
            "expert_dim": self.expert_dim,
            "renormalize": settings.flag(renormalize) if isinstance(renormalize, str) else renormalize,
            "shared_expert_dim": self.shared_dim,
            "shared_gate": bool(self.shared_dim and experts.shared and experts.shared.gate),
            "dense_layers": self.dense,
        }
        settings.require("scoring_func", "softmax", "scores of experts other than softmax in this family")
        if len(self.dense) == self.layers:
            raise UnsupportedModelError(f"{settings.place} leaves no layer with experts; import it as its dense family")
        if self.dense:
            ffn["dim"] = self.hidden
        return ffn

    def _default_activation(self) -> str:
        return "gelu_pytorch_tanh" if self.family.adds_one else "silu"

    def tensors(self, claims: Claims) -> dict[str, LazyTensor]:
        """Take all tensors but a separate output head, by our names and in our layouts."""
        return DecoderTensors(self, claims).take_all()
