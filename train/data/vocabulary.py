"""The tokenizer of a corpus: learned from its training text, or taken from a file, a run or the cache."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer

from ...contract.errors import UserError
from ...contract.files import write_whole
from ...contract.text.stretches import ENCODED_CHARS, LEARNED_CHARS
from ..system.cache_folder import digest_of
from .cache import PIPELINE_VERSION, disk_error
from .config import TokenizerConfig
from .sources.chat import ChatTemplate
from .sources.documents import segments
from .sources.parts import Part
from .sources.scan import Progress
from .sources.sources import Log
from .tokenizers.given_tokenizer import GivenTokenizer
from .tokenizers.round_trip import notes_on_losses
from .tokenizers.tokenizer_json import parse_tokenizer, with_task_tokens
from .tokenizers.tokenizers import make_tokenizer


class Vocabulary:
    """Makes the tokenizer of one corpus, and reports what it cannot write.

    Args:
        config: The section of the tokenizer.
        given: The tokenizer, where the run goes on from another one.
        template: Writes the conversations.
        folder: The cache.
        log: Called with each message for the user.
        progress: Called now and then with (name of the work, bytes done, bytes in all).
    """

    def __init__(
        self,
        config: TokenizerConfig,
        given: GivenTokenizer | None,
        template: ChatTemplate,
        folder: Path,
        log: Log,
        progress: Progress,
    ) -> None:
        self.config, self.given, self.template = config, given, template
        self.folder, self.log, self.progress = folder, log, progress
        self._cut_noted = False

    def tokenizer(self, train: list[Part], phrases: Sequence[str], task_tokens: Sequence[str]) -> Tokenizer:
        """Train the tokenizer, or take it from the cache: the same text and settings make the same one.

        Args:
            train: The parts with the training text.
            phrases: Further text to learn from.
            task_tokens: Tokens that the vocabulary gets besides.

        Raises:
            UserError: A new tokenizer has a token of a task already, or a given one lacks one.
        """
        return self._with_task_tokens(self._without_task_tokens(train, phrases), task_tokens)

    def note_cut(self, length: int) -> None:
        """Log once that a stretch of `length` characters is cut."""
        if not self._cut_noted:
            self._cut_noted = True
            self.log(
                f"a stretch of at least {length:,} characters without a break is cut into pieces of {LEARNED_CHARS:,} "
                f"to learn a vocabulary and of {ENCODED_CHARS:,} to encode it: no token spans a cut"
            )

    def note_losses(self, train: list[Part], tokenizer_json: str) -> None:
        """Log which text a given tokenizer, or one of words, cannot reproduce."""
        config = self.config
        if config.is_file or config.kind == "words":
            sample = (s.text for part in train for s in part.segments(self.template) if not s.held_out)
            for note in notes_on_losses(tokenizer_json, config.kind, sample):
                self.log(note)

    def _with_task_tokens(self, tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
        """Add the tokens of the tasks; a given tokenizer must have them already."""
        if self.given is None:
            return with_task_tokens(tokenizer, tokens, self.config.kind)
        for token in tokens:
            if tokenizer.token_to_id(token) is None:
                raise UserError(
                    f"the task token {token!r} is not in {self.given.name}, and nothing can be added to the tokenizer "
                    "of a model that is trained further; choose a token of that model, or leave it out"
                )
        return tokenizer

    def _without_task_tokens(self, train: list[Part], phrases: Sequence[str]) -> Tokenizer:
        config = self.config
        if self.given is not None:
            return self.given.load()
        if config.is_file or config.kind == "bytes":
            return make_tokenizer(config, iter(()))
        bounded = config.kind in ("bpe", "words")
        total = sum(part.num_bytes for part in train)
        settings = [
            config.kind,
            config.vocab_size,
            config.train_bytes if bounded and total > config.train_bytes else None,
        ]
        chat = self.template.text if any(part.chats for part in train) else None
        texts = [part.identity() for part in train]
        key = digest_of(
            [PIPELINE_VERSION, tokenizers.__version__, settings, chat, texts, *([phrases] if phrases else [])]
        )
        path = self.folder / "tokenizers" / f"{key[:32]}.json"
        try:
            return parse_tokenizer(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            pass
        except (OSError, UserError) as error:
            self.log(f"training the tokenizer again: {error}")
        share = min(1.0, config.train_bytes / max(1, total)) if bounded else 1.0
        if share < 1:
            self.log(
                f"the tokenizer learns from {share:.1%} of the training text "
                f"(tokenizer.train_bytes={config.train_bytes:,})"
            )
        tokenizer = make_tokenizer(config, chain(self._training_text(train, share, total), phrases), self.note_cut)
        text = tokenizer.to_str()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            raise disk_error(error, path.parent, len(text.encode())) from None
        return tokenizer

    def _training_text(self, train: list[Part], share: float, total: int) -> Iterator[str]:
        """Read the training text in pieces; with a share below 1, evenly spaced ones."""
        done = number = 0
        for part in train:
            for item, cut in zip(part.items, part.cuts, strict=True):
                for segment in segments(item, cut, self.template, answers_only=False):
                    if segment.held_out:
                        break
                    done += len(segment.text)
                    number += 1
                    if int(number * share) > int((number - 1) * share):
                        yield segment.text
                    self.progress("learning the vocabulary", min(done, total), total)
