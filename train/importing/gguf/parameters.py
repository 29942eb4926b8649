"""The parameters of a model by our names, from the tensors of a GGUF file."""

from torch import Tensor

from ...model.config.model import ModelConfig
from ...run.checkpoints.tensor_file import LazyTensor
from ..source import Claims, concatenate, reshape, rows, scaled, stack, transpose
from .model_config import Factors


def parameters_of(tensors: Claims, config: ModelConfig, factors: Factors, *, permuted: bool) -> dict[str, LazyTensor]:
    """Take all tensors of the model.

    Args:
        tensors: The tensors of the file.
        config: The config of the model.
        factors: The factors that weights are multiplied by.
        permuted: Whether the rows of q and k are in the order of neighbouring pairs.

    Raises:
        TensorsError: One is missing, left over or of another shape.
    """
    vocabulary, dim = config.vocab_size, config.dim
    tied = config.tie_embeddings
    parameters = {
        "embedding.weight": scaled(tensors.take("token_embd.weight", (vocabulary, dim)), factors.embedding),
        # A tied head is the scaled embedding, so the norm before it takes the factor back.
        "norm.weight": scaled(
            tensors.take("output_norm.weight", (dim,)), factors.logits / (factors.embedding if tied else 1)
        ),
    }
    if not tied:
        parameters["head.weight"] = tensors.take("output.weight", (vocabulary, dim))
    for layer in range(config.num_layers):
        part = _Layer(tensors, config, factors, layer)
        taken = part.attention(permuted=permuted) | part.norms()
        taken |= part.dense() if config.is_dense(layer) else part.experts()
        parameters |= {f"layers.{layer}.{name}": tensor for name, tensor in taken.items()}
        tensors.ignore(f"blk.{layer}.attn_rot_embd.weight")  # a table that old files hold, computed here
    tensors.require_all_taken()
    return parameters


class _Layer:
    """The tensors of one layer."""

    def __init__(self, tensors: Claims, config: ModelConfig, factors: Factors, layer: int) -> None:
        self.tensors, self.config, self.factors, self.layer = tensors, config, factors, layer

    def take(self, name: str, *shape: int) -> LazyTensor:
        return self.tensors.take(f"blk.{self.layer}.{name}", shape)

    def has(self, name: str) -> bool:
        return f"blk.{self.layer}.{name}" in self.tensors

    def attention(self, *, permuted: bool) -> dict[str, LazyTensor]:
        config, attention = self.config, self.config.attention
        width, dim = config.resolved_head_dim, config.dim
        q_rows, kv_rows = config.num_heads * width, config.num_kv_heads * width
        ropes = attention.rope
        rope = ropes[self.layer] if isinstance(ropes, tuple) else ropes
        rotated = rope.rotated(width) if permuted else 0
        parameters: dict[str, LazyTensor] = {}
        # With a norm after q, the factor of the queries belongs to that norm.
        query = 1.0 if attention.qk_norm != "none" else self.factors.query
        for kind, columns in (("weight", (dim,)), ("bias", ())):
            if kind == "bias" and not attention.qkv_bias:
                continue
            if self.has(f"attn_qkv.{kind}"):
                whole = self.take(f"attn_qkv.{kind}", q_rows + 2 * kv_rows, *columns)
                q, k = rows(whole, 0, q_rows), rows(whole, q_rows, q_rows + kv_rows)
                v = rows(whole, q_rows + kv_rows, q_rows + 2 * kv_rows)
            else:
                q = self.take(f"attn_q.{kind}", q_rows, *columns)
                k = self.take(f"attn_k.{kind}", kv_rows, *columns)
                v = self.take(f"attn_v.{kind}", kv_rows, *columns)
            q, k = halves_paired(q, width, rotated), halves_paired(k, width, rotated)
            parameters[f"attention.q.{kind}"] = scaled(q, query)
            parameters[f"attention.kv.{kind}"] = concatenate([k, v])
        parameters["attention.o.weight"] = scaled(self.take("attn_output.weight", dim, q_rows), self.factors.residual)
        if attention.o_bias:
            parameters["attention.o.bias"] = scaled(self.take("attn_output.bias", dim), self.factors.residual)
        if attention.qk_norm != "none":
            q_width, k_width = (width, width) if attention.qk_norm == "head" else (q_rows, kv_rows)
            parameters["attention.q_norm.weight"] = scaled(self.take("attn_q_norm.weight", q_width), self.factors.query)
            parameters["attention.k_norm.weight"] = self.take("attn_k_norm.weight", k_width)
        return parameters

    def norms(self) -> dict[str, LazyTensor]:
        config = self.config
        names: dict[str, str] = {}
        if config.norm_place != "post":
            names |= {"attention_norm": "attn_norm", "ffn_norm": "ffn_norm"}
        if config.norm_place != "pre":
            names |= {"attention_post_norm": "post_attention_norm", "ffn_post_norm": "post_ffw_norm"}
        return {f"{ours}.weight": self.take(f"{theirs}.weight", config.dim) for ours, theirs in names.items()}

    def dense(self) -> dict[str, LazyTensor]:
        config = self.config
        width, dim, biased = config.ffn_dim(self.layer), config.dim, config.ffn.bias
        parameters = {
            "ffn.gate_up.weight": self._gate_up("weight", width, dim),
            "ffn.down.weight": scaled(self.take("ffn_down.weight", dim, width), self.factors.residual),
        }
        if biased:
            parameters["ffn.gate_up.bias"] = self._gate_up("bias", width)
            parameters["ffn.down.bias"] = scaled(self.take("ffn_down.bias", dim), self.factors.residual)
        return parameters

    def _gate_up(self, kind: str, width: int, *columns: int) -> LazyTensor:
        if not self.has(f"ffn_gate.{kind}"):  # Phi-3 stores both as one
            return self.take(f"ffn_up.{kind}", 2 * width, *columns)
        return concatenate([self.take(f"ffn_{name}.{kind}", width, *columns) for name in ("gate", "up")])

    def experts(self) -> dict[str, LazyTensor]:
        config, dim = self.config, self.config.dim
        count, width, shared = config.num_experts, config.ffn.expert_dim, config.ffn.shared_expert_dim
        if self.has("ffn_gate_up_exps.weight"):
            gate_up = self.take("ffn_gate_up_exps.weight", count, 2 * width, dim)
        else:
            gate_up = concatenate([self._expert(name, count, width, dim) for name in ("gate", "up")], 1)
        down = self._expert("down", count, dim, width)
        parameters = {
            "moe.router.weight": self.take("ffn_gate_inp.weight", count, dim),
            "moe.gate_up": transpose(gate_up),
            "moe.down": scaled(transpose(down), self.factors.residual * self.factors.experts),
        }
        if config.ffn.router_bias:
            parameters["moe.router.bias"] = self.take("ffn_gate_inp.bias", count)
        if config.ffn.selection_bias:
            parameters["moe.router.selection_bias"] = self.take("exp_probs_b.bias", count)
        if shared:
            pair = [self.take(f"ffn_{name}_shexp.weight", shared, dim) for name in ("gate", "up")]
            parameters["moe.shared.gate_up.weight"] = concatenate(pair)
            parameters["moe.shared.down.weight"] = scaled(
                self.take("ffn_down_shexp.weight", dim, shared), self.factors.residual
            )
        if config.ffn.shared_gate:
            parameters["moe.shared_gate.weight"] = reshape(self.take("ffn_gate_inp_shexp.weight", dim), (1, dim))
        return parameters

    def _expert(self, name: str, count: int, outputs: int, inputs: int) -> LazyTensor:
        if self.has(f"ffn_{name}_exps.weight"):
            return self.take(f"ffn_{name}_exps.weight", count, outputs, inputs)
        # Mixtral files of before April 2024 have a tensor for each expert.
        return stack([self.take(f"ffn_{name}.{expert}.weight", outputs, inputs) for expert in range(count)])


def halves_paired(tensor: LazyTensor, width: int, rotated: int) -> LazyTensor:
    """Reorder the rows of q or k from neighbouring pairs to pairs of one component of each half.

    Args:
        tensor: Weight or bias, with the rows of all heads.
        width: Rows of a head.
        rotated: Rows of a head that rotary positions turn, the first ones; 0 leaves all as they are.
    """
    if not rotated:
        return tensor

    def read() -> Tensor:
        heads = tensor.read().reshape(-1, width, *tensor.shape[1:]).clone()  # (heads, W, ...)
        pairs = heads[:, :rotated].reshape(len(heads), rotated // 2, 2, *tensor.shape[1:])
        heads[:, :rotated] = pairs.transpose(1, 2).flatten(1, 2).clone()
        return heads.flatten(0, 1)

    return LazyTensor(tensor.shape, tensor.dtype, read)
