"""A held-out text for a model whose training text is unknown: samples of the model itself."""

import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer

from ..data.builtin import builtin_records
from ..model.hollow import hollow
from ..model.transformer import Transformer
from .run_writer import Heldout
from .source import ForeignModel

LARGEST = 2**25
"""Parameters up to which a model samples its own text. Each token computes its text again, since the model in torch has
no cache: 134 million parameters took 35 seconds for 256 tokens."""
ROWS = 32
"""Number of texts that are sampled together."""
TOKENS = 256
"""Longest text in tokens."""
SECONDS = 8.0
"""The sampling ends after this time."""


def own_text(
    foreign: ForeignModel, log: Callable[[str], None], seconds: float = SECONDS, largest: int = LARGEST
) -> Heldout:
    """Sample texts from the model, or take the built-in text where the model is large.

    Args:
        foreign: The model.
        log: Is told which text it is.
        seconds: Where to stop.
        largest: Parameters up to which the model samples.
    """
    parameters = sum(value.numel() for value in hollow(foreign.config).parameters())
    if parameters > largest:
        text = "\n\n".join(f"{one['prompt']}\n{one['completion']}" for one in builtin_records("facts"))  # type: ignore[index]
        log(
            "held-out text: the built-in questions and answers, since the model is too large to sample from here. "
            "Give text like your own by --heldout FILE"
        )
        return Heldout(text, "built-in")
    texts = samples(loaded(foreign), Tokenizer.from_str(foreign.tokenizer), foreign, seconds)
    log(
        "held-out text: samples of the model itself, on which it does better than on the text of others. Give text "
        "like your own by --heldout FILE"
    )
    return Heldout("\n\n".join(texts).replace("\0", "") + "\n", "own")  # a file with a zero byte is not read as text


def loaded(foreign: ForeignModel) -> Transformer:
    """Build the model in float32."""
    model = hollow(foreign.config)
    state = {name: tensor.read().float() for name, tensor in foreign.tensors.items()}
    model.load_state_dict(state, strict=False, assign=True)  # buffers are there already
    if foreign.config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval()


@torch.no_grad()
def samples(model: Transformer, tokenizer: Tokenizer, foreign: ForeignModel, seconds: float) -> list[str]:
    """Sample texts at temperature 1, each from its first token on; special tokens are never drawn."""
    draw = torch.Generator().manual_seed(0)
    size, settings = tokenizer.get_vocab_size(with_added_tokens=True), foreign.generation
    allowed = torch.zeros(foreign.config.vocab_size, dtype=torch.bool)
    allowed[[number for number in tokenizer.get_vocab(with_added_tokens=False).values() if number < len(allowed)]] = (
        True
    )
    special = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    allowed[[number for number in [*special, *settings.eos_ids] if number < len(allowed)]] = False
    if not allowed.any():
        allowed[: min(size, len(allowed))] = True
    first = settings.bos_id if settings.bos_id is not None else settings.eos_ids[0]
    ids = torch.full((ROWS, 1), min(first, foreign.config.vocab_size - 1))
    started, longest = time.monotonic(), min(TOKENS, foreign.config.context_length)
    while ids.shape[1] < longest and (ids.shape[1] < 9 or time.monotonic() - started < seconds):
        logits = model(ids).logits[:, -1].float().masked_fill(~allowed, float("-inf"))
        ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=draw)], 1)
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids[:, 1:].tolist()]
