"""How training text is varied: the `data.augment` section. Off by default; held-out text is never touched."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

WORDNET = "wordnet"
BUILTIN = "builtin"


class AugmentConfig(BaseModel):
    """For small texts that are read many times. All of it is a function of seed, epoch and window, so a resumed run
    goes on exactly; each epoch varies the text anew.

    Changed while a window is read:

    - `word_dropout`: this share of the tokens that the model sees are replaced, while what it is asked for stays (Xie
      et al. 2017, arXiv 1703.02573; Bowman et al. 2016, arXiv 1511.06349). For a text read more than some five times:
      the first thing to try, 0.05 to 0.2.
    - `unknown_word`: replaced by the tokenizer's unknown token instead of a token drawn from the training text. For
      tokenizers that have one, where the model will meet unknown words.
    - `span_shuffle`: this share of the words stands in spans whose words change places, and the changed text is what is
      learned (a local shuffle: Lample et al. 2018, arXiv 1711.00043; swaps: EDA, Wei and Zou 2019, arXiv 1901.11196).
      For text whose order says little, such as lists; not for prose that the model is to write.
    - `span_words`: words in such a span.

    Rewritten before it is tokenised, in `variants` copies that take turns with the text itself, epoch by epoch:

    - `synonyms`: a table of words and what may stand for them (.tsv, .json or .yaml), or `wordnet` where nltk and its
      corpus are installed (EDA's synonym replacement). For a few hundred sentences; in conversations only what the user
      says is changed.
    - `synonym_share`: of the words that have one, so many are replaced.
    - `templates`: other ways to ask, each with {question} in it (.txt with one a line, .json or .yaml), or `builtin`
      ones. For questions and answers: conversations, and plain records such as `User: ... Assistant: ...`.
    - `variants`: each takes the disk space of the text.

    - `leave_code`: what looks like code is left as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    word_dropout: float = Field(default=0.0, ge=0, lt=1)
    unknown_word: bool = False
    span_shuffle: float = Field(default=0.0, ge=0, le=1)
    span_words: int = Field(default=4, ge=2)
    synonyms: str | None = Field(default=None, min_length=1)
    synonym_share: float = Field(default=0.1, gt=0, le=1)
    templates: str | None = Field(default=None, min_length=1)
    variants: int = Field(default=4, ge=1, le=64)
    leave_code: bool = True

    @property
    def noisy(self) -> bool:
        """Whether windows are changed while they are read."""
        return self.word_dropout > 0 or self.span_shuffle > 0

    @property
    def rewrites(self) -> bool:
        """Whether text is rewritten before it is tokenised."""
        return self.synonyms is not None or self.templates is not None
