"""The model that writes these texts: random weights, and a vocabulary trained on all of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from adaptive_lm.contract.file_names import TOKENIZER
from adaptive_lm.runtime import Engine
from adaptive_lm.train.data.tokenizers.tokenizers import bpe_tokenizer
from models import random_weights
from models.random_weights import SIZES, Precision
from texts.kinds import TEXTS, Text


def exports(work: Path, size: str, precisions: Sequence[Precision]) -> Iterator[Path]:
    """Export the model in each precision, with a vocabulary of its own texts."""
    run = work / "run"
    random_weights.write_run(run, SIZES[size])
    texts = (part for make in TEXTS.values() for text in make(40) for part in text)
    bpe_tokenizer(texts, 8192).save(str(run / TOKENIZER))
    for precision in precisions:
        folder = work / f"{size} {precision}"
        random_weights.export(run, folder, precision)
        yield folder


def ids_of(engine: Engine, text: Text, tokens: int) -> tuple[list[int], list[int]]:
    """Return the tokens of a text: the prompt, from its end as long as there is room, and the answer."""
    context = engine.manifest.model.context_length
    answer = engine.tokenizer.encode(text.answer)[: min(tokens, 3 * context // 4)]
    return engine.tokenizer.encode(text.prompt)[-(context - len(answer)) :], answer
