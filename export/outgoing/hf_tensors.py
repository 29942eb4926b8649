"""The tensors of a model by the names of Hugging Face, one for each projection and expert.

D width, F hidden width, E experts.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from ...train.importing.source import rows, transpose
from ...train.model.config.model import ModelConfig
from ...train.run.checkpoints.tensor_file import LazyTensor


def hf_tensors(config: ModelConfig, family: str, state: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Return the tensors of a checkpoint by their names in the files of a family, in their own dtypes."""
    return dict(_renamed(config, family, {name: _lazy(value) for name, value in state.items()}))


def _lazy(value: Tensor) -> LazyTensor:
    return LazyTensor(tuple(value.shape), value.dtype, lambda: value)


def _renamed(config: ModelConfig, family: str, state: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    yield "model.embed_tokens.weight", state["embedding.weight"]
    yield "model.norm.weight", state["norm.weight"]
    if not config.tie_embeddings:
        yield "lm_head.weight", state["head.weight"]
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        yield f"{theirs}input_layernorm.weight", state[f"{ours}attention_norm.weight"]
        yield f"{theirs}post_attention_layernorm.weight", state[f"{ours}ffn_norm.weight"]
        yield from _attention(state, f"{ours}attention.", f"{theirs}self_attn.")
        if config.is_dense(layer):
            yield from _swiglu(state, f"{ours}ffn.", f"{theirs}mlp.")
        else:
            yield from _experts(config, family, state, f"{ours}moe.", theirs)


def _attention(state: Mapping[str, LazyTensor], ours: str, theirs: str) -> Iterator[tuple[str, LazyTensor]]:
    for kind in ("weight", "bias"):
        if f"{ours}q.{kind}" in state:
            yield f"{theirs}q_proj.{kind}", state[f"{ours}q.{kind}"]
            kv = state[f"{ours}kv.{kind}"]
            half = kv.shape[0] // 2
            yield f"{theirs}k_proj.{kind}", rows(kv, 0, half)
            yield f"{theirs}v_proj.{kind}", rows(kv, half, 2 * half)
        if f"{ours}o.{kind}" in state:
            yield f"{theirs}o_proj.{kind}", state[f"{ours}o.{kind}"]
    for norm in ("q_norm.weight", "k_norm.weight"):
        if ours + norm in state:
            yield theirs + norm, state[ours + norm]


def _swiglu(state: Mapping[str, LazyTensor], ours: str, theirs: str) -> Iterator[tuple[str, LazyTensor]]:
    for kind in ("weight", "bias"):
        if f"{ours}gate_up.{kind}" in state:
            gate_up = state[f"{ours}gate_up.{kind}"]
            half = gate_up.shape[0] // 2
            yield f"{theirs}gate_proj.{kind}", rows(gate_up, 0, half)
            yield f"{theirs}up_proj.{kind}", rows(gate_up, half, 2 * half)
            yield f"{theirs}down_proj.{kind}", state[f"{ours}down.{kind}"]


def _experts(
    config: ModelConfig, family: str, state: Mapping[str, LazyTensor], ours: str, layer: str
) -> Iterator[tuple[str, LazyTensor]]:
    block, names = {
        "mixtral": (f"{layer}block_sparse_moe.", ("w1", "w3", "w2")),
        "qwen3_moe": (f"{layer}mlp.", ("gate_proj", "up_proj", "down_proj")),
    }[family]
    hidden = config.ffn.expert_dim
    yield f"{block}gate.weight", state[f"{ours}router.weight"]
    for expert in range(config.num_experts):
        gate_up = _one(state[f"{ours}gate_up"], expert)  # (D, 2F)
        parts = (rows(gate_up, 0, hidden, 1), rows(gate_up, hidden, 2 * hidden, 1), _one(state[f"{ours}down"], expert))
        for name, part in zip(names, parts, strict=True):
            yield f"{block}experts.{expert}.{name}.weight", transpose(part)


def _one(stacked: LazyTensor, place: int) -> LazyTensor:
    """Take one matrix of a stack (E, ...)."""
    return LazyTensor(stacked.shape[1:], stacked.dtype, lambda: stacked.read()[place])
