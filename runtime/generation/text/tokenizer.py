"""The tokenizer of an exported model: text to ids, and ids to text by its decoder."""

import json
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import tokenizers

from ....contract.errors import UserError
from ....contract.file_names import TOKENIZER
from ....contract.text.stretches import ENCODED_CHARS, cut_stretches
from ...format.manifest import Manifest
from .decoder import Decoder
from .text_stream import TextStream


class Tokenizer:
    """`tokenizer.json` of an exported model. May be used from any thread.

    Special tokens that a text spells out are read as the characters they are: only the program puts special tokens in,
    and the chat template of a model, by `encode_rendered`.
    """

    def __init__(
        self, path: Path, *, size: int, eos_id: int, ends: Collection[int] = (), bos_id: int | None = None
    ) -> None:
        """Read `path`.

        Args:
            path: The file of the tokenizers library.
            size: The manifest's number of ids, the highest id + 1.
            eos_id: The manifest's id of the end of a text.
            ends: All ids that end a text; `eos_id` is always one of them.
            bos_id: The id with which a prompt without a template begins; None for none.

        Raises:
            UserError: `path` is no tokenizer, or not that of the manifest.
        """
        try:
            self._json = path.read_text(encoding="utf-8")
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(self._json)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} is no tokenizer: {error}; export the model again") from error
        actual = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if actual != size:
            raise UserError(
                f"{path} has a vocabulary of {actual}, the model was made for {size}: they do not belong together; "
                "export the model again"
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._lock = threading.Lock()  # `encode_rendered` changes the library's tokenizer for the time of a call
        self.size = size
        self.eos_id = eos_id
        self.ends = frozenset((eos_id, *ends))
        """Ids that end a text."""
        self.bos_id = bos_id

    @classmethod
    def of_model(cls, folder: Path, manifest: Manifest) -> Self:
        """Read the tokenizer of the exported model in `folder`.

        Raises:
            UserError: The file is no tokenizer, or not that of the manifest.
        """
        model, generation = manifest.model, manifest.generation
        return cls(
            folder / TOKENIZER,
            size=model.tokenizer_size,
            eos_id=model.eos_id,
            ends=model.ends,
            bos_id=generation.bos_id if generation.add_bos else None,
        )

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of all text that the vocabulary lacks; None if no text is unknown."""
        if isinstance(self._tokenizer.model, tokenizers.models.Unigram):
            number: int | None = self._parsed["model"]["unk_id"]
            return number
        name = getattr(self._tokenizer.model, "unk_token", None)
        return self._tokenizer.token_to_id(name) if isinstance(name, str) else None

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, special ones included."""
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`.

        Raises:
            UserError: UTF-8 cannot hold the text.
        """
        return [number for encoding in self._encodings(text) for number in encoding.ids]

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt that no template wrote: with the token that begins a text, where the model has it.

        Raises:
            UserError: UTF-8 cannot hold the text.
        """
        return [*([] if self.bos_id is None or not text else [self.bos_id]), *self.encode(text)]

    def encode_rendered(self, text: str, escaped: Mapping[str, str]) -> list[int]:
        """Return the ids of a text that a chat template wrote: added tokens that it spells out are those tokens.

        They are the ids that the tokenizers library gives, with special tokens, for the text in which each key of
        `escaped` stands for its value, which is read as the characters it is.

        Raises:
            UserError: UTF-8 cannot hold the text.
        """
        require_utf8(text)
        used = [tokenizers.normalizers.Replace(mark, spelled) for mark, spelled in escaped.items() if mark in text]
        library = self._without_normalized if used and self._has_normalized else self._tokenizer
        pieces = self._rendered_pieces(text, escaped)
        with self._lock:
            before = library.normalizer
            library.encode_special_tokens = False
            if used:  # the library splits the text at added tokens first, and normalizes what is between them
                library.normalizer = tokenizers.normalizers.Sequence([*used, *([] if before is None else [before])])
            try:
                return [n for piece in pieces for n in library.encode(piece, add_special_tokens=False).ids]
            finally:
                library.encode_special_tokens = True
                if used:
                    library.normalizer = before

    def _rendered_pieces(self, text: str, escaped: Mapping[str, str]) -> list[str]:
        """Cut `text` as `_pieces`, but not inside an added token or an escaped one."""
        if len(self._pieces(text)) == 1:
            return [text]
        whole = re.compile("(" + "|".join(map(re.escape, [*escaped, *sorted(self.added_tokens, key=len)[::-1]])) + ")")
        pieces = [""]
        for place, part in enumerate(whole.split(text)):
            first, *rest = [part] if place % 2 else self._pieces(part)
            pieces[-1] += first
            pieces += rest
        return pieces

    @cached_property
    def added_tokens(self) -> dict[str, bool]:
        """The text of each token that the tokenizer looks for before all others, and whether it is special."""
        return {token["content"]: token["special"] for token in self._parsed.get("added_tokens", [])}

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its text in the vocabulary; None if there is none."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def special_id(self, token: str) -> int | None:
        """Return the id of a special token by its text; None if the text is no special token."""
        return self.id_of(token) if self.added_tokens.get(token) else None

    @cached_property
    def _has_normalized(self) -> bool:
        """Whether some added tokens are looked for in the normalized text."""
        return any(token.get("normalized") for token in self._parsed.get("added_tokens", []))

    @cached_property
    def _without_normalized(self) -> Any:
        """The same tokenizer, which looks for all added tokens in the text as it is."""
        added = [{**token, "normalized": False} for token in self._parsed["added_tokens"]]
        library = tokenizers.Tokenizer.from_str(json.dumps({**self._parsed, "added_tokens": added}))
        library.no_truncation()
        library.no_padding()
        return library

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of `text`, and for each the characters (start, end) that it stands for."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        place = 0
        for piece, encoding in zip(self._pieces(text), self._encodings(text), strict=True):
            ids += encoding.ids
            spans += [(place + start, place + end) for start, end in encoding.offsets]
            place += len(piece)
        return ids, spans

    def _pieces(self, text: str) -> list[str]:
        """Cut `text` as training does, where a stretch is too long for one call."""
        return cut_stretches(text, ENCODED_CHARS)[0]

    def _encodings(self, text: str) -> list[Any]:
        require_utf8(text)
        pieces = self._pieces(text)
        with self._lock:
            return [self._tokenizer.encode(piece, add_special_tokens=False) for piece in pieces]

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self._tokenizer, self._parsed, unknown_id=self.unknown_id, encode=self.encode)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, without special tokens: all that a stream from the start gives."""
        stream = self.stream([])
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, before: Sequence[int], show: bool | Collection[int] = False) -> TextStream:
        """Open a stream of the text that follows the ids `before`; see `Decoder.stream`."""
        return self._decoder.stream(before, show)

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that an id adds inside a text; none for special tokens and the unknown one."""
        return self._decoder.bytes_of(token)

    def token_bytes(self) -> list[bytes]:
        """Return the bytes that each id adds inside a text; see `bytes_of`."""
        table = [b""] * self.size
        for number in self.vocabulary.values():
            table[number] = self.bytes_of(number)
        return table

    @cached_property
    def _parsed(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self._json)
        return parsed


def require_utf8(text: str) -> None:
    """Check that UTF-8 can hold `text`.

    Raises:
        UserError: It cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is not valid UTF-8: found {text[error.start]!r} at character {error.start}; save it as UTF-8"
        ) from error
