"""The tensors of a decoder of Llama's kind, by our names and in our layouts. E experts, F hidden width."""

from ...run.checkpoints.tensor_file import LazyTensor
from ..source import Claims, concatenate, plus_one, rows, scaled, stack, transpose
from .decoder_shape import DecoderShape
from .families import Experts


class DecoderTensors:
    """Takes the tensors of a decoder.

    Args:
        shape: Its sizes and factors.
        claims: The tensors of its files.
    """

    def __init__(self, shape: DecoderShape, claims: Claims) -> None:
        self.shape, self.claims, self.dim = shape, claims, shape.dim

    def take_all(self) -> dict[str, LazyTensor]:
        """Take all tensors but a separate output head, by our names and in our layouts."""
        tensors = {
            "embedding.weight": self.claims.take("embed_tokens.weight", (self.shape.vocab, self.dim)),
            "norm.weight": scaled(self._norm("norm.weight", self.dim), 1 / self.shape.logits_scale),
        }
        for layer in range(self.shape.layers):
            self.claims.ignore(f"layers.{layer}.self_attn.rotary_emb.inv_freq")  # files of before 2023 have it
            prefix = f"layers.{layer}."  # theirs and ours
            parts = [*self._norms(prefix), *self._attention(prefix + "self_attn.")]
            if layer in self.shape.dense:
                parts += self._swiglu(prefix + "mlp.", "ffn.", self.shape.hidden)
            else:
                parts += self._experts(prefix)
            tensors |= {prefix + name: tensor for name, tensor in parts}
        self.claims.ignore("rotary_emb.inv_freq")
        return tensors

    def _norm(self, name: str, width: int) -> LazyTensor:
        weight = self.claims.take(name, (width,))
        return plus_one(weight) if self.shape.family.adds_one else weight

    def _norms(self, prefix: str) -> list[tuple[str, LazyTensor]]:
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
        }[self.shape.family.norm_place]
        return [(f"{ours}.weight", self._norm(f"{prefix}{theirs}.weight", self.dim)) for ours, theirs in names.items()]

    def _attention(self, prefix: str) -> list[tuple[str, LazyTensor]]:
        of_q, of_k = self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim
        kinds = ["weight", "bias"] if self.shape.qkv_bias else ["weight"]
        normed = self.shape.family.qk_norm != "none"  # then the norm of queries takes their scale
        parts: list[tuple[str, LazyTensor]] = []
        for kind in kinds:
            inputs = (self.dim,) if kind == "weight" else ()
            if self.shape.family.fused:
                qkv = self.claims.take(f"{prefix}qkv_proj.{kind}", (of_q + 2 * of_k, *inputs))
                q, kv = rows(qkv, 0, of_q), rows(qkv, of_q, of_q + 2 * of_k)
            else:
                q = self.claims.take(f"{prefix}q_proj.{kind}", (of_q, *inputs))
                kv = concatenate([self.claims.take(f"{prefix}{one}_proj.{kind}", (of_k, *inputs)) for one in "kv"])
            parts += [
                (f"attention.q.{kind}", q if normed else scaled(q, self.shape.query_scale)),
                (f"attention.kv.{kind}", kv),
            ]
        parts.append(
            ("attention.o.weight", self._residual(self.claims.take(f"{prefix}o_proj.weight", (self.dim, of_q))))
        )
        if self.shape.o_bias:
            parts.append(("attention.o.bias", self._residual(self.claims.take(f"{prefix}o_proj.bias", (self.dim,)))))
        if normed:
            full = self.shape.family.qk_norm == "full"
            q_norm = self._norm(f"{prefix}q_norm.weight", of_q if full else self.shape.head_dim)
            k_norm = self._norm(f"{prefix}k_norm.weight", of_k if full else self.shape.head_dim)
            parts += [
                ("attention.q_norm.weight", scaled(q_norm, self.shape.query_scale)),
                ("attention.k_norm.weight", k_norm),
            ]
        return parts

    def _residual(self, tensor: LazyTensor) -> LazyTensor:
        """Fold the factor of what is added to the hidden state into a matrix that writes to it."""
        return scaled(tensor, self.shape.residual_scale)

    def _swiglu(self, prefix: str, ours: str, hidden: int) -> list[tuple[str, LazyTensor]]:
        parts: list[tuple[str, LazyTensor]] = []
        for kind in ["weight", "bias"] if self.shape.ffn_bias else ["weight"]:
            inputs, outputs = ((self.dim,), (hidden,)) if kind == "weight" else ((), ())
            if self.shape.family.fused:
                gate_up = self.claims.take(f"{prefix}gate_up_proj.{kind}", (2 * hidden, *inputs))
            else:
                gate_up = concatenate(
                    [self.claims.take(f"{prefix}{one}_proj.{kind}", (hidden, *inputs)) for one in ("gate", "up")]
                )
            down = self.claims.take(f"{prefix}down_proj.{kind}", (self.dim, *outputs))
            parts += [(f"{ours}gate_up.{kind}", gate_up), (f"{ours}down.{kind}", self._residual(down))]
        return parts

    def _experts(self, prefix: str) -> list[tuple[str, LazyTensor]]:
        experts = self.shape.experts
        assert experts is not None
        block = f"{prefix}{experts.block}."
        if f"{block}{experts.router}" not in self.claims and f"{prefix}mlp.{experts.router}" in self.claims:
            block = f"{prefix}mlp."  # transformers 5 calls every feed-forward part so
        count, hidden = self.shape.num_experts, self.shape.expert_dim
        router = self.claims.take(block + experts.router, (count, self.dim))
        fused = self._fused_names(block, experts)
        if fused is not None:
            gate_up = transpose(self.claims.take(fused[0], (count, 2 * hidden, self.dim)))
            down = transpose(self.claims.take(fused[1], (count, self.dim, hidden)))
        else:
            gate, up, out = experts.matrices
            each = [f"{block}experts.{number}." for number in range(count)]
            gate_up = stack(
                [
                    transpose(
                        concatenate(
                            [self.claims.take(f"{one}{name}.weight", (hidden, self.dim)) for name in (gate, up)]
                        )
                    )
                    for one in each
                ]
            )
            down = stack([transpose(self.claims.take(f"{one}{out}.weight", (self.dim, hidden))) for one in each])
        scale = self.shape.settings.number("routed_scaling_factor", 1)
        parts = [
            ("moe.router.weight", router),
            ("moe.gate_up", gate_up),
            ("moe.down", scaled(self._residual(down), scale)),
        ]
        if self.shape.shared_dim and experts.shared is not None:
            parts += self._swiglu(f"{block}{experts.shared.name}.", "moe.shared.", self.shape.shared_dim)
            if experts.shared.gate:
                parts.append(("moe.shared_gate.weight", self.claims.take(block + experts.shared.gate, (1, self.dim))))
        return parts

    def _fused_names(self, block: str, experts: Experts) -> tuple[str, str] | None:
        """Return the names of the stacks of a file whose experts are fused; None where each has its own tensors."""
        for pair in (experts.fused, ("experts.gate_up_proj", "experts.down_proj")):
            if block + pair[0] in self.claims:
                return block + pair[0], block + pair[1]
        return None
