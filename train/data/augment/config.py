"""Variation of training text: the `data.augment` section. Off by default; held-out text is never changed."""

from pydantic import Field

from ...system.section import Section

WORDNET = "wordnet"
BUILTIN = "builtin"


class AugmentConfig(Section):
    """Variation of training text, for small texts that are read many times.

    All of it is a function of seed, epoch and window, so a resumed run continues exactly; each epoch varies the text
    anew. Words are dropped and shuffled while a window is read; synonyms and templates rewrite the text before it is
    tokenised, in `variants` copies that take turns with the text itself, epoch by epoch.
    """

    word_dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of tokens, from 0 to below 1, that are replaced where the model sees them, while its targets stay (Xie
    et al. 2017, arXiv 1703.02573; Bowman et al. 2016, arXiv 1511.06349). The first thing to try for a text that is read
    more than about five times: 0.05 to 0.2."""
    unknown_word: bool = False
    """Replace those tokens by the tokenizer's unknown token, instead of tokens drawn from the training text. For
    tokenizers that have one, where the model will meet unknown words."""
    span_shuffle: float = Field(default=0.0, ge=0, le=1)
    """The share of words, from 0 to 1, that are in spans whose words change places; the changed text is the target (a
    local shuffle: Lample et al. 2018, arXiv 1711.00043; swaps: EDA, Wei and Zou 2019, arXiv 1901.11196). For text whose
    order matters little, such as lists; not for prose that the model should write."""
    span_words: int = Field(default=4, ge=2)
    """Words in such a span, at least 2."""
    synonyms: str | None = Field(default=None, min_length=1)
    """A table of words and their synonyms (`.tsv`, `.json` or `.yaml`), or `wordnet` where nltk and its corpus are
    installed (EDA's synonym replacement). For a few hundred sentences. In conversations only the user's turns are
    changed."""
    synonym_share: float = Field(default=0.1, gt=0, le=1)
    """The share of words that are replaced, of those that have a synonym: above 0, at most 1."""
    templates: str | None = Field(default=None, min_length=1)
    """Other ways to ask, each with `{question}` in it: a file (`.txt` with one a line, `.json` or `.yaml`), or
    `builtin`. For questions and answers: conversations, and plain records such as `User: ... Assistant: ...`."""
    variants: int = Field(default=4, ge=1, le=64)
    """Rewritten copies of the text, 1 to 64. Each takes the disk space of the text."""
    leave_code: bool = True
    """Leave text as it is where it looks like code."""

    @property
    def noisy(self) -> bool:
        """Whether windows are changed while they are read."""
        return self.word_dropout > 0 or self.span_shuffle > 0

    @property
    def rewrites(self) -> bool:
        """Whether text is rewritten before it is tokenised."""
        return self.synonyms is not None or self.templates is not None
