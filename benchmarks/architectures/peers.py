"""Small language models of other libraries: trained for some seconds, scored, and timed while they decode.

B batch, T time, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adaptive_lm.train.system.device import autocast, choose_precision
from training.by_clock import train_by_clock
from training.peers import PlainGPT, Shape

CPU = torch.device("cpu")
BATCH = 16
RATE = 2e-3
"""Highest learning rate of AdamW; the best of 1e-3, 2e-3 and 4e-3 for the Llama at these sizes."""


@dataclass(frozen=True)
class Peer:
    """An architecture, as its own library builds it."""

    build: Callable[[Shape], nn.Module]
    past: str = "past_key_values"
    """The argument that takes the cache of the tokens so far; "" for a model that has none."""
    anywhere: bool = True
    """Whether it decodes beyond the context that it was trained on."""


def _of(name: str, **fields: Any) -> Callable[[Shape], nn.Module]:
    """Return the builder of a model of the transformers library, whose fields may be computed from the shape."""

    def build(shape: Shape) -> nn.Module:
        import transformers

        common = {"vocab_size": shape.vocabulary, "hidden_size": shape.dim, "num_hidden_layers": shape.layers}
        ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
        own = {key: value(shape) if callable(value) else value for key, value in fields.items()}
        config = getattr(transformers, f"{name}Config")(**{**common, **ends, **own})
        model: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
        return model

    return build


def _nanogpt(shape: Shape) -> nn.Module:
    """Return GPT-2's form with nanoGPT's first values."""
    model = PlainGPT(shape)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    return model


def _heads(shape: Shape) -> int:
    return shape.heads


ATTENTION = {"num_attention_heads": _heads, "num_key_value_heads": _heads, "max_position_embeddings": 16384}
MIXTURE = {"num_experts_per_tok": 2, "output_router_logits": True}
"""The load-balancing loss is on, as in ours."""


def _dense(shape: Shape) -> int:
    """Return the hidden width of a dense part, so that a token uses as many weights as in ours."""
    return 344 * shape.dim // 128


def _expert(shape: Shape) -> int:
    """Return the hidden width of one of two experts."""
    return 172 * shape.dim // 128


PEERS: Mapping[str, Peer] = {
    "GPT-2 (nanoGPT's form)": Peer(_nanogpt, past="", anywhere=False),
    "Llama": Peer(_of("Llama", intermediate_size=_dense, **ATTENTION)),
    "Mixtral": Peer(
        _of("Mixtral", intermediate_size=_expert, num_local_experts=8, **ATTENTION, **MIXTURE)
    ),
    "OLMoE": Peer(
        _of("Olmoe", intermediate_size=_expert, num_experts=8, **ATTENTION, **MIXTURE)
    ),
    # no feed-forward part: two of its blocks in place of one of the others
    "Mamba-2": Peer(
        _of(
            "Mamba2", num_heads=lambda shape: 2 * shape.dim // 32, head_dim=32, state_size=32, n_groups=1,
            num_hidden_layers=lambda shape: 2 * shape.layers,
        ),
        past="cache_params",
    ),
    "RWKV-4": Peer(_of("Rwkv", context_length=16384, attention_hidden_size=lambda shape: shape.dim), past="state"),
}  # fmt: skip


@dataclass
class Trained:
    """A peer after its training."""

    model: nn.Module
    steps: int
    bits_per_byte: float
    megaflops: float
    """Of one token at the training context, forward, as torch's counter sees its matrix products."""


def logits_of(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return logits (B, T, V), and the model's own additional loss where it has one."""
    out = model(ids)
    if isinstance(out, Tensor):
        return out, None
    return out.logits, getattr(out, "aux_loss", None)


def train_peer(
    name: str, shape: Shape, text: str, tokenizer: Tokenizer, heldout: str, seed: int, seconds: float
) -> Trained:
    """Train a peer on one thread for some seconds, and score it on the held-out text."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    model = PEERS[name].build(shape).train()
    precision = choose_precision("auto", CPU)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        with autocast(CPU, precision):
            logits, more = logits_of(model, inputs)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return loss if more is None else loss + 0.01 * more

    steps = train_by_clock(model, ids, loss_of, seconds, rate=RATE, second_beta=0.95, batch=BATCH, length=shape.length)
    model.eval()
    bits = bits_per_byte(model, tokenizer, heldout, shape.length)
    return Trained(model, steps, bits, flops(model, shape))


@torch.no_grad()
def bits_per_byte(model: nn.Module, tokenizer: Tokenizer, text: str, length: int) -> float:
    """Score a text in windows of the training context, each token once."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    nats = 0.0
    for first in range(0, len(ids) - 1, length):
        window = ids[first : first + length + 1]
        logits, _ = logits_of(model, window[None, :-1])
        nats += float(F.cross_entropy(logits[0].float(), window[1:], reduction="sum"))
    scored = tokenizer.decode(ids[1:].tolist(), skip_special_tokens=False)
    return nats / math.log(2) / len(scored.encode())


@torch.no_grad()
def flops(model: nn.Module, shape: Shape) -> float:
    """Return the millions of FLOPs of a token's forward pass at the training context."""
    choose = getattr(model, "set_experts_implementation", None)
    if choose is not None:
        choose("eager")  # torch's counter does not see its grouped products
    with FlopCounterMode(display=False) as counter:
        logits_of(model, torch.zeros((1, shape.length), dtype=torch.int64))
    return float(counter.get_total_flops()) / shape.length / 1e6


class Decoder:
    """A peer that decodes token by token after a context."""

    def __init__(self, peer: Peer, model: nn.Module, vocabulary: int) -> None:
        self.peer, self.model = peer, model
        self.ids = torch.arange(4 * vocabulary).remainder(vocabulary)[None]
        self.past: Any = None
        self.position = 0

    @torch.no_grad()
    def begin(self, context: int) -> None:
        """Read a context from an empty cache, in pieces that fit the memory of their scores."""
        self.past, self.position = None, 0
        while self.position < context:
            self._run(min(512, context - self.position))

    @torch.no_grad()
    def milliseconds(self, context: int, tokens: int, clock: Callable[[], float]) -> float:
        """Return the median milliseconds of a token after a context, by a clock in seconds."""
        self.begin(context)
        self._run(1)
        times = []
        for _ in range(tokens):
            began = clock()
            self._run(1)
            times.append(clock() - began)
        return float(np.median(times)) * 1000

    def memory(self, context: int) -> int:
        """Return the bytes of the tensors of the cache after a context."""
        self.begin(context)
        return sum(one.numel() * one.element_size() for one in {id(one): one for one in tensors(self.past)}.values())

    def _run(self, count: int) -> None:
        ids = self.ids[:, :1].expand(1, count)
        arguments: dict[str, Any] = {self.peer.past: self.past, "use_cache": True}
        if self.peer.past == "cache_params" and self.past is not None:
            arguments["cache_position"] = torch.tensor([self.position])
        self.past = getattr(self.model(ids, **arguments), self.peer.past)
        self.position += count


def tensors(value: Any, depth: int = 0) -> list[Tensor]:
    """Return all tensors in a cache of the transformers library."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [one for each in value.values() for one in tensors(each, depth + 1)]
    if isinstance(value, (list, tuple)):
        return [one for each in value for one in tensors(each, depth + 1)]
    return tensors(vars(value), depth + 1) if hasattr(value, "__dict__") and depth < 6 else []
