"""Greedy decoding with torch. T time, V vocabulary."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from ..data.tokenizers.ids import eos_id
from ..model.transformer import Transformer
from ..system.device import autocast


@torch.no_grad()
def greedy_answer(
    model: Transformer, tokenizer: Tokenizer, prompt: str, max_tokens: int, precision: str, end: int | None = None
) -> str:
    """Return the continuation of `prompt`, without it, up to the end of the text or `max_tokens` tokens.

    The token `end` ends a text; None takes `<|endoftext|>`.

    Each token reads the whole text again at the present thresholds of the controllers: slow, but nothing changes.
    """
    device, length = model.embedding.weight.device, model.config.context_length
    ids = list(tokenizer.encode(prompt, add_special_tokens=False).ids)
    prompt_length, end = len(ids), eos_id(tokenizer) if end is None else end
    model.eval()
    try:
        # A compiled block would be compiled again for each length.
        with torch.compiler.set_stance("force_eager"):
            while ids and len(ids) < prompt_length + max_tokens:
                window = torch.tensor([ids[-length:]], device=device)  # (1, T)
                with autocast(device, precision):
                    logits = model(window).logits[0, -1]  # (V,)
                token = int(logits.argmax())
                if token == end:
                    break
                ids.append(token)
    finally:
        model.train()
    # With the prompt before it: many decoders drop the space of a text's first token.
    before = str(tokenizer.decode(ids[:prompt_length], skip_special_tokens=False))
    return str(tokenizer.decode(ids, skip_special_tokens=False))[len(before) :]
