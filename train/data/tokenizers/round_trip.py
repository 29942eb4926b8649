"""Losses of a tokenizer: a sample of the text is encoded and decoded, and the difference described."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator

from tokenizers import Tokenizer

from ....contract.text.stretches import ENCODED_CHARS, cut_stretches
from .ids import unknown_id, vocabulary_size

SAMPLE_CHARS = 2**16


def notes_on_losses(tokenizer_json: str, name: str, texts: Iterable[str]) -> Iterator[str]:
    """Return a message for each loss and waste of the tokenizer `name`; `texts` is the training text."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    unused = vocabulary_size(tokenizer) - tokenizer.get_vocab_size()
    if unused > 0:
        yield f"{unused:,} ids of the tokenizer stand for no token; each costs a row of the embedding"
    lost = lost_in_tokens(tokenizer, texts)
    if lost is not None:
        yield (
            f"the tokenizer {name} cannot give the text back: it loses {lost} (in a sample of the training text), so "
            "the model cannot write them; bpe and bytes lose nothing"
        )


def lost_in_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> str | None:
    """Describe what encoding and decoding loses of the first `SAMPLE_CHARS` of `texts`.

    Returns:
        Such as "capital letters, line ends and 2.10% of the characters, which are unknown to it"; None where nothing is
        lost.
    """
    unknown = unknown_id(tokenizer)
    total = missing = 0
    before: list[str] = []  # the text without what is unknown
    after: list[str] = []
    same = True
    for text in texts:
        text = text[: SAMPLE_CHARS - total]
        if not text:
            break
        total += len(text)
        for piece in cut_stretches(text, ENCODED_CHARS)[0]:
            encoding = tokenizer.encode(piece, add_special_tokens=False)
            same &= tokenizer.decode(encoding.ids, skip_special_tokens=False) == piece
            place = 0
            for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if number == unknown:
                    before.append(piece[place:start])
                    missing += end - start
                    place = max(place, end)
            before.append(piece[place:])
            ids = [number for number in encoding.ids if number != unknown]
            after.append(tokenizer.decode(ids, skip_special_tokens=False))
    if same:
        return None
    lost = _lost_kinds("".join(before), "".join(after))
    if missing:
        lost.append(f"{max(missing / total, 0.0001):.2%} of the characters, which are unknown to it")
    return _listed(lost or ["how some characters are written"])


def _lost_kinds(before: str, after: str) -> list[str]:
    """Name the kinds of characters of which `after` has another number than `before`."""
    kinds: dict[str, Callable[[str], bool]] = {
        "capital letters": str.isupper,
        "line ends": lambda char: char in "\r\n",
        "spaces": lambda char: char.isspace() and char not in "\r\n",
        "accents": lambda char: len(unicodedata.normalize("NFD", char)) > 1 or unicodedata.combining(char) > 0,
    }
    return [name for name, test in kinds.items() if sum(map(test, before)) != sum(map(test, after))]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
