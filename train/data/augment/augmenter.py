"""The effect of `data.augment` on each source, once the tokenizer is known."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest

import numpy as np
from tokenizers import Tokenizer

from ....contract.errors import UserError
from ..cache import Stream
from ..sources.sources import Log
from ..tokenizers.encoder import Encoder
from ..tokenizers.ids import unknown_id
from ..windows.order import mix
from .codelike import named_as_code
from .config import AugmentConfig
from .rewrite import SLOT, Rewriter, read_templates
from .synonyms import Synonyms
from .word_noise import Noise, Words

AUGMENT = 7
"""Keeps the random keys of this package apart from those of the order of windows."""


class Plan:
    """The settings of each source, with the tables and templates that they name.

    Raises:
        UserError: a table or a file of templates cannot be read, or WordNet is not installed.
    """

    def __init__(self, configs: Sequence[AugmentConfig]) -> None:
        self.configs = list(configs)
        self.templates = [() if one.templates is None else read_templates(one.templates) for one in configs]
        tables = {one.synonyms: Synonyms(one.synonyms) for one in configs if one.synonyms is not None}
        self.synonyms = [None if one.synonyms is None else tables[one.synonyms] for one in configs]

    @property
    def phrases(self) -> list[str]:
        """The text of the templates around a question, which the tokenizer must learn too."""
        return sorted({phrase for templates in self.templates for one in templates for phrase in around(one)})

    def identity(self, names: Sequence[Sequence[str]]) -> list[object]:
        """List everything that the varied text depends on, for the digest of a corpus; empty where no text is varied.

        Args:
            names: The names of the files of each source.
        """
        if not any(one.noisy or one.rewrites for one in self.configs):
            return []
        digests = [None if one is None else one.digest for one in self.synonyms]
        settings = [one.model_dump(mode="json", exclude={"synonyms", "templates"}) for one in self.configs]
        code = [[named_as_code(name) for name in files] for files in names]
        return ["augment", settings, digests, [list(one) for one in self.templates], code]


def around(template: str) -> list[str]:
    """List the texts before and after the question, each with a space before it."""
    return [f" {part.strip()}" for part in template.split(SLOT) if part.strip()]


class Augmenter:
    """Makes the rewriters and the noise of each source.

    Raises:
        UserError: `unknown_word` is set, and the tokenizer has no unknown token.
    """

    def __init__(
        self, plan: Plan, tokenizer: Tokenizer, encoder: Encoder, seed: int, log: Log, leads: Sequence[int] = ()
    ) -> None:
        """Set up; `leads` are the tokens of tasks, which stay where they are."""
        self._plan, self._tokenizer, self._encoder, self._seed, self._log = plan, tokenizer, encoder, seed, log
        self._unknown = unknown_id(tokenizer)
        self._knows = lru_cache(maxsize=2**16)(self._is_known)
        self._words = Words(tokenizer, leads) if any(one.noisy for one in plan.configs) else None
        if self._unknown is None and any(one.unknown_word and one.word_dropout for one in plan.configs):
            raise UserError(
                "data.augment.unknown_word is set, but this tokenizer has no unknown token, because it can write any "
                "text; leave it out to replace tokens by others of the text, or use --tokenizer words or chars"
            )

    def rewriters(self, source: int) -> list[Rewriter]:
        """Make a rewriter for each variant of a source; none where the source is not rewritten."""
        config = self._plan.configs[source]
        if not config.rewrites:
            return []
        templates = self._plan.templates[source]
        usable = [one for one in templates if all(map(self._knows, around(one)))]
        if len(usable) < len(templates):
            self._log(
                f"{len(templates) - len(usable)} of {len(templates)} templates of data.augment hold words that the "
                "tokenizer does not know, and are left out"
            )
        key = mix(self._seed, source, AUGMENT)
        numbers = range(1, config.variants + 1)
        return [Rewriter(config, self._plan.synonyms[source], usable, self._knows, key, number) for number in numbers]

    def noise(self, source: int, names: Sequence[str], stream: Stream) -> Noise | None:
        """Make the noise for a source with files of these names; None where its windows stay as they are."""
        config = self._plan.configs[source]
        if not config.noisy or self._words is None or (config.leave_code and all(map(named_as_code, names))):
            return None
        return Noise(config, self._words, stream, self._unknown)

    def changed(self, source: int, name: str, streams: Sequence[Stream]) -> list[Stream]:
        """Keep the streams that differ from the first, which is the text itself; report a source without any."""
        rewritten = [one for one in streams[1:] if not np.array_equal(one.tokens, streams[0].tokens)]
        if len(streams) > 1 and not rewritten:
            parts = zip_longest(("synonyms", "templates"), (self._plan.synonyms[source], self._plan.templates[source]))
            settings = " and ".join(f"data.augment.{part}" for part, given in parts if given)
            self._log(f"{name}: {settings} change nothing: the text holds no word of the table, or no question")
        return rewritten

    def _is_known(self, text: str) -> bool:
        return self._unknown is None or not bool((self._encoder.encode_batch([text])[0] == self._unknown).any())
