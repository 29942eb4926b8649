"""The tokens of the parts of a text: from the cache, or written into it first."""

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from ...contract.errors import UserError
from ..system.cache_folder import digest_of
from .augment.rewrite import Rewriter
from .build import expected_bytes, free_bytes, write_entry
from .cache import PIPELINE_VERSION, Entry, new_entry, open_entry
from .sources.chat import ChatTemplate
from .sources.parts import Part
from .sources.scan import Progress
from .tokenizers.encoder import Encoder
from .tokenizers.given_tokenizer import GivenTokenizer
from .tokenizers.ids import eos_id, unknown_id, vocabulary_size


class PartTokenizer:
    """Tokenises parts with one tokenizer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        kind: str,
        given: GivenTokenizer | None,
        template: ChatTemplate,
        folder: Path,
        *,
        cut: Callable[[int], None],
        progress: Progress,
    ) -> None:
        """Set up the encoder.

        Args:
            tokenizer: The tokenizer.
            kind: Its kind.
            given: The same tokenizer as the run has it that training goes on from; None for a new one.
            template: Writes the conversations.
            folder: The cache.
            cut: Called with the length of a stretch that is encoded in pieces.
            progress: Called now and then with (name of the work, bytes done, bytes in all).
        """
        self.tokenizer, self.template, self.folder, self.progress = tokenizer, template, folder, progress
        self.json = tokenizer.to_str()
        self.encoder = Encoder(self.json, kind, cut)
        self.end = given.end if given else eos_id(tokenizer)
        """Token id that ends a text."""
        self.begin = given.begin if given else None
        """Token id that begins a text without a chat template; None for none."""
        self.identity = given.identity() if given else []
        """Part of a key where texts begin or end with tokens of another program."""

    def settings(self, chats: int, loss_on: str) -> list[object]:
        """Return the part of a key that only a text with conversations has."""
        return [loss_on, self.template.text] if chats else []

    def entry(self, part: Part, rewriter: Rewriter | None = None) -> Entry:
        """Open the entry of a part, tokenised now if the cache has none.

        Args:
            part: The part.
            rewriter: Changes its text.

        Raises:
            UserError: The disk has no room, cannot be written, or damages what is written.
        """
        tokenizer, encoder = self.tokenizer, self.encoder
        variant = [] if rewriter is None else [rewriter.identity, part.left(rewriter)]
        settings = [*self.settings(part.chats, part.loss_on), *self.identity]
        number = None if part.lead is None else tokenizer.token_to_id(part.lead)
        lead = None if part.lead is None or number is None else (number, part.lead)
        begun = [] if lead is None else ["begins with", *lead]
        key = digest_of([PIPELINE_VERSION, self.json, part.identity(), settings, *variant, *begun])
        folder = self.folder / "tokens" / key[:32]
        wide = vocabulary_size(tokenizer) > 2**16
        for _ in range(3):  # another process may remove a damaged entry just when we have written a good one
            entry = open_entry(folder)
            if entry is not None:
                return entry
            sample = part.segments(self.template)
            needed = expected_bytes(sample, encoder, part.num_bytes, (4 if wide else 2) + part.masked)
            free = free_bytes(folder.parent)
            if free < needed:
                raise UserError(
                    f"the tokenised text needs about {needed:,} bytes in {folder.parent}, where {free:,} are free; "
                    "free some, or choose another folder: --set data.cache_dir=FOLDER or the variable ADAPTIVE_CACHE"
                )
            done = 0

            def advance(count: int, part: Part = part) -> None:
                nonlocal done
                done += count
                self.progress(f"tokenising {part.name}", min(done, part.num_bytes), part.num_bytes)

            with new_entry(folder, needed) as place:
                write_entry(
                    place,
                    part.segments(self.template, rewriter),
                    encoder,
                    wide=wide,
                    masked=part.masked,
                    eos_id=self.end,
                    end=str(tokenizer.id_to_token(self.end)),
                    bos_id=self.begin,
                    lead=lead,
                    unknown=unknown_id(tokenizer),
                    advance=advance,
                )
        raise UserError(
            f"{folder} is damaged again each time it is written; check the disk, or choose another folder with "
            "--set data.cache_dir=FOLDER"
        )
