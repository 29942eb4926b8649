"""The pre-tokenizers that GGUF knows by name: how text is cut before the merges of byte-level BPE.

A file holds only a name. The patterns are those of the tokenizer.json of each family.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE = r"[^\r\n\p{L}\p{N}]?"

THREE_DIGITS = rf"{CONTRACTIONS}|{WORD}|\p{{N}}{{1,3}}|{MARKS}|{SPACES}"
ONE_DIGIT = rf"{CONTRACTIONS}|{WORD}|\p{{N}}|{MARKS}|{SPACES}"
ONE_DIGIT_WITH_MARKS = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
)
O200K = (
    rf"{BEFORE}{UPPER}*{LOWER}+{CONTRACTIONS}?|{BEFORE}{UPPER}+{LOWER}*{CONTRACTIONS}?|"
    rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
)
TEKKEN = rf"{BEFORE}{UPPER}*{LOWER}+|{BEFORE}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"


class PreTokenizer(NamedTuple):
    """One way to cut text."""

    patterns: tuple[str, ...] = ()
    """Cut at the matches of each, one after the other; empty: by the pattern of GPT-2."""
    digits: bool = False
    """Whether each digit is cut off first."""
    whole_words: bool = False
    """Whether a piece that is itself a token is taken without merging."""
    composed: bool = False
    """Whether text is brought into the normal form NFC."""
    add_bos: bool = False
    """Whether a prompt begins with the beginning-of-text token, where the file does not say."""

    def normalizer(self) -> normalizers.Normalizer | None:
        """Return the normaliser; None where text is left as it is."""
        return normalizers.NFC() if self.composed else None

    def build(self) -> pre_tokenizers.PreTokenizer:
        """Return the pre-tokenizer of the library."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps += [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.patterns))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


GPT2 = PreTokenizer()
GPT2_WITH_DIGITS = PreTokenizer(digits=True)
LLAMA3 = PreTokenizer((THREE_DIGITS,), whole_words=True, add_bos=True)
CL100K = PreTokenizer((THREE_DIGITS,))
QWEN2 = PreTokenizer((ONE_DIGIT,), composed=True)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "phi-2", "jais", "trillion", "granite-docling", "exaone4"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"), GPT2_WITH_DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), CL100K),
    "qwen2": QWEN2,
    **dict.fromkeys(("deepseek-r1-qwen", "megrez", "stablelm2"), QWEN2._replace(composed=False)),
    "qwen35": PreTokenizer((ONE_DIGIT_WITH_MARKS,), composed=True),
    **dict.fromkeys(("gpt-4o", "llama4"), PreTokenizer((O200K,))),
    "tekken": PreTokenizer((TEKKEN,), whole_words=True, add_bos=True),
}
"""By the name that GGUF gives each in `tokenizer.ggml.pre`."""
