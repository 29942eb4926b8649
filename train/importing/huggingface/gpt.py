"""GPT-2 and GPT-NeoX (Pythia): LayerNorm, biases everywhere, no gate in the feed-forward part.

D width, H heads, W width of a head.
"""

from typing import Any

import torch
from torch import Tensor

from ...run.checkpoints.tensor_file import LazyTensor
from ..source import Claims, rows, transpose
from .activation import activation_of
from .rope import rope_of
from .settings import LARGEST_CONTEXT, Settings


class GPT2:
    """The config and tensors of GPT-2; its linear layers are stored (in, out).

    Args:
        settings: Its config.json.
    """

    prefixes = ("transformer.", "")
    first = "wte.weight"
    head = "lm_head.weight"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dim = settings.integer("n_embd", 768)
        self.layers = settings.integer("n_layer", 12, most=4096)
        self.heads = settings.integer("n_head", 12)
        self.hidden = settings.integer("n_inner", 4 * self.dim)
        self.vocab = settings.integer("vocab_size", 50257)
        self.context = settings.integer("n_positions", 1024, least=8, most=LARGEST_CONTEXT)
        self.tied = settings.flag("tie_word_embeddings", True)
        settings.require("scale_attn_weights", True, "attention without the scale of its scores")

    def config(self) -> dict[str, Any]:
        """Return the sections of our config."""
        return {
            "vocab_size": self.vocab,
            "context_length": self.context,
            "dim": self.dim,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "num_kv_heads": self.heads,
            "norm": "layer",
            "norm_eps": self.settings.number("layer_norm_epsilon", 1e-5),
            "tie_embeddings": self.tied,
            "attention": {"positions": "learned", "qk_norm": "none", "qkv_bias": True, "o_bias": True},
            "ffn": {
                "routing": "dense",
                "dim": self.hidden,
                "gated": False,
                "bias": True,
                "activation": activation_of(self.settings, "activation_function", "gelu_new"),
            },
        }

    def tensors(self, claims: Claims) -> dict[str, LazyTensor]:
        """Take all tensors, by our names and in our layouts."""
        dim, hidden = self.dim, self.hidden
        tensors = {
            "embedding.weight": claims.take(self.first, (self.vocab, dim)),
            "learned_positions": claims.take("wpe.weight", (self.context, dim)),
            **norm_of(claims, "norm", "ln_f", dim),
        }
        for layer in range(self.layers):
            ours, theirs = f"layers.{layer}.", f"h.{layer}."
            for mask in ("attn.bias", "attn.masked_bias"):  # files of before 2022 hold the causal mask
                claims.ignore(theirs + mask)
            qkv = transpose(claims.take(f"{theirs}attn.c_attn.weight", (dim, 3 * dim)))
            bias = claims.take(f"{theirs}attn.c_attn.bias", (3 * dim,))
            tensors |= {
                **norm_of(claims, ours + "attention_norm", theirs + "ln_1", dim),
                f"{ours}attention.q.weight": rows(qkv, 0, dim),
                f"{ours}attention.q.bias": rows(bias, 0, dim),
                f"{ours}attention.kv.weight": rows(qkv, dim, 3 * dim),
                f"{ours}attention.kv.bias": rows(bias, dim, 3 * dim),
                f"{ours}attention.o.weight": transpose(claims.take(f"{theirs}attn.c_proj.weight", (dim, dim))),
                f"{ours}attention.o.bias": claims.take(f"{theirs}attn.c_proj.bias", (dim,)),
                **norm_of(claims, ours + "ffn_norm", theirs + "ln_2", dim),
                f"{ours}ffn.up.weight": transpose(claims.take(f"{theirs}mlp.c_fc.weight", (dim, hidden))),
                f"{ours}ffn.up.bias": claims.take(f"{theirs}mlp.c_fc.bias", (hidden,)),
                f"{ours}ffn.down.weight": transpose(claims.take(f"{theirs}mlp.c_proj.weight", (hidden, dim))),
                f"{ours}ffn.down.bias": claims.take(f"{theirs}mlp.c_proj.bias", (dim,)),
            }
        return tensors

    def notes(self) -> list[str]:
        """Return lines for the user."""
        return []


class GPTNeoX:
    """The config and tensors of GPT-NeoX; its queries, keys and values are interleaved by head.

    Args:
        settings: Its config.json.
    """

    prefixes = ("gpt_neox.", "")
    first = "embed_in.weight"
    head = "embed_out.weight"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dim = settings.integer("hidden_size")
        self.layers = settings.integer("num_hidden_layers", most=4096)
        self.heads = settings.integer("num_attention_heads")
        self.head_dim = max(self.dim // self.heads, 1)
        self.hidden = settings.integer("intermediate_size")
        self.vocab = settings.integer("vocab_size")
        self.context = settings.integer("max_position_embeddings", 2048, least=8, most=LARGEST_CONTEXT)
        self.tied = settings.flag("tie_word_embeddings")
        self.biased = settings.flag("attention_bias", True)

    def config(self) -> dict[str, Any]:
        """Return the sections of our config."""
        settings = self.settings
        base, share = settings.number("rotary_emb_base", 10_000.0), settings.number("rotary_pct", 0.25)
        return {
            "vocab_size": self.vocab,
            "context_length": self.context,
            "dim": self.dim,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "num_kv_heads": self.heads,
            "norm": "layer",
            "norm_eps": settings.number("layer_norm_eps", 1e-5),
            "parallel_residual": settings.flag("use_parallel_residual", True),
            "tie_embeddings": self.tied,
            "attention": {
                "rope": rope_of(settings, theta=base, context=self.context, share=share),
                "qk_norm": "none",
                "qkv_bias": self.biased,
                "o_bias": self.biased,
            },
            "ffn": {
                "routing": "dense",
                "dim": self.hidden,
                "gated": False,
                "bias": True,
                "activation": activation_of(settings, "hidden_act", "gelu"),
            },
        }

    def tensors(self, claims: Claims) -> dict[str, LazyTensor]:
        """Take all tensors, by our names and in our layouts."""
        dim, hidden = self.dim, self.hidden
        tensors = {
            "embedding.weight": claims.take(self.first, (self.vocab, dim)),
            **norm_of(claims, "norm", "final_layer_norm", dim),
        }
        for layer in range(self.layers):
            ours, theirs = f"layers.{layer}.", f"layers.{layer}."
            for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):  # old files hold the mask and the frequencies
                claims.ignore(f"{theirs}attention.{name}")
            tensors |= {
                **norm_of(claims, ours + "attention_norm", theirs + "input_layernorm", dim),
                **norm_of(claims, ours + "ffn_norm", theirs + "post_attention_layernorm", dim),
                f"{ours}ffn.up.weight": claims.take(f"{theirs}mlp.dense_h_to_4h.weight", (hidden, dim)),
                f"{ours}ffn.up.bias": claims.take(f"{theirs}mlp.dense_h_to_4h.bias", (hidden,)),
                f"{ours}ffn.down.weight": claims.take(f"{theirs}mlp.dense_4h_to_h.weight", (dim, hidden)),
                f"{ours}ffn.down.bias": claims.take(f"{theirs}mlp.dense_4h_to_h.bias", (dim,)),
            }
            for kind in ["weight", "bias"] if self.biased else ["weight"]:
                inputs = (dim,) if kind == "weight" else ()
                qkv = claims.take(f"{theirs}attention.query_key_value.{kind}", (3 * dim, *inputs))
                tensors |= {
                    f"{ours}attention.q.{kind}": self._part(qkv, 0, 1),
                    f"{ours}attention.kv.{kind}": self._part(qkv, 1, 3),
                    f"{ours}attention.o.{kind}": claims.take(f"{theirs}attention.dense.{kind}", (dim, *inputs)),
                }
        return tensors

    def _part(self, qkv: LazyTensor, start: int, stop: int) -> LazyTensor:
        """Take queries (0), keys (1) or values (2) of a tensor whose rows are heads, then the three, then W."""
        heads, width, rest = self.heads, self.head_dim, qkv.shape[1:]

        def read() -> Tensor:
            parts = qkv.read().view(heads, 3, width, *rest)[:, start:stop]  # (H, n, W, ...)
            return torch.cat(list(parts.unbind(1))).reshape(-1, *rest)

        return LazyTensor(((stop - start) * heads * width, *rest), qkv.dtype, read)

    def notes(self) -> list[str]:
        """Return lines for the user."""
        return []


def norm_of(claims: Claims, ours: str, theirs: str, width: int) -> dict[str, LazyTensor]:
    """Take weight and bias of a LayerNorm."""
    return {f"{ours}.{kind}": claims.take(f"{theirs}.{kind}", (width,)) for kind in ("weight", "bias")}
