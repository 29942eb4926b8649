"""Decoders of Llama's kind: their config and tensors in ours, by the table of families.

D width, H query heads, K key/value heads, W width of a head, F hidden width, E experts.
"""

import math
from typing import Any

from ...run.checkpoints.tensor_file import LazyTensor
from ..errors import UnsupportedModelError
from ..source import Claims, concatenate, plus_one, rows, scaled, stack, transpose
from .families import Bias, Experts, Family
from .rope import Rope, rope_of, ropes_by_kind
from .settings import LARGEST_CONTEXT, Settings, missing_feature

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Activation in config.json -> ours."""


class Decoder:
    """The config of a decoder, and its tensors.

    Args:
        settings: Its config.json.
        family: Its family.
    """

    prefixes = ("model.language_model.", "language_model.model.", "model.", "")
    first = "embed_tokens.weight"
    head = "lm_head.weight"

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
        name = settings.text(self.family.activation, settings.text("hidden_act", self._default_activation()))
        if name not in ACTIVATIONS:
            raise missing_feature(settings.place, self.family.activation, name, "such activation")
        ffn: dict[str, Any] = {
            # the first Gemma states gelu, and was trained with its approximation by tanh
            "activation": "gelu_tanh" if self.family.adds_one and name == "gelu" else ACTIVATIONS[name],
            "bias": self.ffn_bias,
        }
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

    # --- tensors

    def tensors(self, claims: Claims) -> dict[str, LazyTensor]:
        """Take all tensors, by our names and in our layouts."""
        tensors = {
            "embedding.weight": claims.take("embed_tokens.weight", (self.vocab, self.dim)),
            "norm.weight": scaled(self._norm(claims, "norm.weight", self.dim), 1 / self.logits_scale),
        }
        for layer in range(self.layers):
            claims.ignore(f"layers.{layer}.self_attn.rotary_emb.inv_freq")  # files of before 2023 have it
            ours, theirs = f"layers.{layer}.", f"layers.{layer}."
            parts = [*self._norms(claims, theirs), *self._attention(claims, theirs + "self_attn.")]
            feed = self._dense(claims, theirs) if layer in self.dense else self._experts(claims, theirs)
            tensors |= {ours + name: tensor for name, tensor in [*parts, *feed]}
        claims.ignore("rotary_emb.inv_freq")
        return tensors

    def _norm(self, claims: Claims, name: str, width: int) -> LazyTensor:
        weight = claims.take(name, (width,))
        return plus_one(weight) if self.family.adds_one else weight

    def _norms(self, claims: Claims, prefix: str) -> list[tuple[str, LazyTensor]]:
        names = {
            "pre": {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
            "post": {
                "attention_post_norm": "post_attention_layernorm",
                "ffn_post_norm": "post_feedforward_layernorm",
            },
            "sandwich": {
                "attention_norm": "input_layernorm",
                "attention_post_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "ffn_post_norm": "post_feedforward_layernorm",
            },
        }[self.family.norm_place]
        return [
            (f"{ours}.weight", self._norm(claims, f"{prefix}{theirs}.weight", self.dim))
            for ours, theirs in names.items()
        ]

    def _attention(self, claims: Claims, prefix: str) -> list[tuple[str, LazyTensor]]:
        of_q, of_k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        kinds = ["weight", "bias"] if self.qkv_bias else ["weight"]
        normed = self.family.qk_norm != "none"  # then the norm of queries takes their scale
        parts: list[tuple[str, LazyTensor]] = []
        for kind in kinds:
            inputs = (self.dim,) if kind == "weight" else ()
            if self.family.fused:
                qkv = claims.take(f"{prefix}qkv_proj.{kind}", (of_q + 2 * of_k, *inputs))
                q, kv = rows(qkv, 0, of_q), rows(qkv, of_q, of_q + 2 * of_k)
            else:
                q = claims.take(f"{prefix}q_proj.{kind}", (of_q, *inputs))
                kv = concatenate([claims.take(f"{prefix}{one}_proj.{kind}", (of_k, *inputs)) for one in "kv"])
            parts += [
                (f"attention.q.{kind}", q if normed else scaled(q, self.query_scale)),
                (f"attention.kv.{kind}", kv),
            ]
        parts.append(("attention.o.weight", self._residual(claims.take(f"{prefix}o_proj.weight", (self.dim, of_q)))))
        if self.o_bias:
            parts.append(("attention.o.bias", self._residual(claims.take(f"{prefix}o_proj.bias", (self.dim,)))))
        if normed:
            full = self.family.qk_norm == "full"
            q_norm = self._norm(claims, f"{prefix}q_norm.weight", of_q if full else self.head_dim)
            k_norm = self._norm(claims, f"{prefix}k_norm.weight", of_k if full else self.head_dim)
            parts += [
                ("attention.q_norm.weight", scaled(q_norm, self.query_scale)),
                ("attention.k_norm.weight", k_norm),
            ]
        return parts

    def _residual(self, tensor: LazyTensor) -> LazyTensor:
        """Fold the factor of what is added to the hidden state into a matrix that writes to it."""
        return scaled(tensor, self.residual_scale)

    def _dense(self, claims: Claims, prefix: str) -> list[tuple[str, LazyTensor]]:
        return self._swiglu(claims, f"{prefix}mlp.", "ffn.", self.hidden)

    def _swiglu(self, claims: Claims, prefix: str, ours: str, hidden: int) -> list[tuple[str, LazyTensor]]:
        parts: list[tuple[str, LazyTensor]] = []
        for kind in ["weight", "bias"] if self.ffn_bias else ["weight"]:
            inputs, outputs = ((self.dim,), (hidden,)) if kind == "weight" else ((), ())
            if self.family.fused:
                gate_up = claims.take(f"{prefix}gate_up_proj.{kind}", (2 * hidden, *inputs))
            else:
                gate_up = concatenate(
                    [claims.take(f"{prefix}{one}_proj.{kind}", (hidden, *inputs)) for one in ("gate", "up")]
                )
            down = claims.take(f"{prefix}down_proj.{kind}", (self.dim, *outputs))
            parts += [(f"{ours}gate_up.{kind}", gate_up), (f"{ours}down.{kind}", self._residual(down))]
        return parts

    def _experts(self, claims: Claims, prefix: str) -> list[tuple[str, LazyTensor]]:
        experts = self.experts
        assert experts is not None
        block = f"{prefix}{experts.block}."
        if f"{block}{experts.router}" not in claims and f"{prefix}mlp.{experts.router}" in claims:
            block = f"{prefix}mlp."  # transformers 5 calls every feed-forward part so
        count, hidden = self.num_experts, self.expert_dim
        router = claims.take(block + experts.router, (count, self.dim))
        fused = self._fused_names(claims, block, experts)
        if fused is not None:
            gate_up = transpose(claims.take(fused[0], (count, 2 * hidden, self.dim)))
            down = transpose(claims.take(fused[1], (count, self.dim, hidden)))
        else:
            gate, up, out = experts.matrices
            each = [f"{block}experts.{number}." for number in range(count)]
            gate_up = stack(
                [
                    transpose(
                        concatenate([claims.take(f"{one}{name}.weight", (hidden, self.dim)) for name in (gate, up)])
                    )
                    for one in each
                ]
            )
            down = stack([transpose(claims.take(f"{one}{out}.weight", (self.dim, hidden))) for one in each])
        scale = self.settings.number("routed_scaling_factor", 1)
        parts = [
            ("moe.router.weight", router),
            ("moe.gate_up", gate_up),
            ("moe.down", scaled(self._residual(down), scale)),
        ]
        if self.shared_dim and experts.shared is not None:
            parts += self._swiglu(claims, f"{block}{experts.shared.name}.", "moe.shared.", self.shared_dim)
            if experts.shared.gate:
                parts.append(("moe.shared_gate.weight", claims.take(block + experts.shared.gate, (1, self.dim))))
        return parts

    def _fused_names(self, claims: Claims, block: str, experts: Experts) -> tuple[str, str] | None:
        """Return the names of the stacks of a file whose experts are fused; None where each has its own tensors."""
        for pair in (experts.fused, ("experts.gate_up_proj", "experts.down_proj")):
            if block + pair[0] in claims:
                return block + pair[0], block + pair[1]
        return None
