"""The tokenizer of an exported model: text to ids, and ids to a stream of whole characters."""

import json
import re
import threading
from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import tokenizers

from ....contract.byte_table import byte_characters
from ....contract.errors import UserError
from ....contract.file_names import TOKENIZER
from ....contract.text.stretches import ENCODED_CHARS, cut_stretches
from ...format.manifest import Manifest
from .text_stream import CONTEXT_TOKENS, ByteStream, TextStream, WindowStream

BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


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

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, without special tokens: all that a stream from the start gives."""
        stream = self.stream([])
        return "".join([*map(stream.push, ids), stream.flush()])

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that an id adds inside a text; none for special tokens and the unknown one."""
        if token in self._silent:
            return b""
        data = self._bytes_of.get(token)
        if data is None:
            ids, skip = self._context  # the first token of a text is decoded differently
            data = self._decode_at_once([*ids, token])[skip:].encode()
        return data

    def token_bytes(self) -> list[bytes]:
        """Return the bytes that each id adds inside a text; see `bytes_of`."""
        table = [b""] * self.size
        for number in self._tokenizer.get_vocab(with_added_tokens=True).values():
            table[number] = self.bytes_of(number)
        return table

    @cached_property
    def _silent(self) -> frozenset[int]:
        """Ids that add no text."""
        return self._special | ({self.unknown_id} if self.unknown_id is not None else set())

    @cached_property
    def _context(self) -> tuple[list[int], int]:
        """The ids of a short text, and the length of its text."""
        ids = [number for number in self.encode("a") if number not in self._silent]
        return ids, len(self._decode_at_once(ids))

    def stream(self, before: Sequence[int], show: bool | Collection[int] = False) -> TextStream:
        """Open a stream of the text that follows the ids `before`, such as a prompt; an empty list starts a text.

        The text of `before` and that of the stream together are the text of all ids.

        Args:
            before: Ids before the text.
            show: The special tokens that are shown, as they are spelled: all, none, or those with these ids.
        """
        shown = {n: text for n, text in self._specials.items() if show is True or (show and n in show)}
        stream: TextStream
        if self._decoders and set(self._decoders) <= {"ByteLevel", "Fuse"} and self._decoders[0] == "ByteLevel":
            spelled = {number: text.encode() for number, text in shown.items()}
            stream = ByteStream(ChainMap(spelled, self._bytes_of) if shown else self._bytes_of)
        else:
            stream = WindowStream(
                self._decode_at_once, self._bytes_of, self._special, fallback=self._has_fallback, shown=shown
            )
        for token in self._end_of(before):
            stream.push(token)
        return stream

    def _end_of(self, ids: Sequence[int]) -> list[int]:
        """Return the last ids that are text, a few, starting where a character starts."""
        end: list[int] = []
        for token in reversed(ids):
            if token in self._special:
                continue
            if len(end) >= CONTEXT_TOKENS and not _continues(self._bytes_of.get(end[-1], b"")):
                break
            end.append(token)
        return end[::-1]

    def _decode_at_once(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    @cached_property
    def _parsed(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self._json)
        return parsed

    @cached_property
    def _decoders(self) -> list[str]:
        """The kinds of decoder that the text goes through, in order."""
        return list(_kinds(self._parsed.get("decoder")))

    @property
    def _has_fallback(self) -> bool:
        return "ByteFallback" in self._decoders

    @cached_property
    def _specials(self) -> dict[int, str]:
        """The text of each special token."""
        return {token["id"]: token["content"] for token in self._parsed.get("added_tokens", []) if token["special"]}

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self._specials)

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        """The bytes of each token that stands for bytes; special tokens have none."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if self._has_fallback:
            return {n: bytes.fromhex(token[3:5]) for token, n in vocabulary.items() if BYTE_TOKEN.fullmatch(token)}
        if "ByteLevel" not in self._decoders:
            return {}
        alphabet = {char: byte for byte, char in enumerate(byte_characters())}
        table = {}
        for token, number in vocabulary.items():
            if number in self._special:
                continue
            if all(char in alphabet for char in token):
                table[number] = bytes(alphabet[char] for char in token)
            else:  # an added token is written as it is
                table[number] = token.encode()
        return table


def _kinds(decoder: Any) -> Iterator[str]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _kinds(part)
    else:
        yield decoder["type"]


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


def _continues(data: bytes) -> bool:
    """Whether `data` begins inside a character of UTF-8."""
    return bool(data) and 0x80 <= data[0] < 0xC0
