"""Diagnosis of bytes that are not text: the cause, from the whole file, and advice that loses no valid character."""

import codecs
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .compression import compression_of, without_compression

Pieces = Callable[[], Iterable[bytes]]

# Windows-1252 leaves these undefined: a file with one of them is in another encoding.
_NOT_WINDOWS_1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")
# Accented letters of a Western European text stand alone; of a Russian or Chinese text nearly all bytes are above 127.
_MAX_NEIGHBOURS = 0.3
# Signs and capitals of Windows-1252 between two small letters: accented letters of Mac OS or DOS.
_NOT_WESTERN = re.compile(rb"[a-z][\x80-\x84\x86-\x91\x93-\x95\x98\x99\x9b\x9f](?=[a-z])")
_MAX_NOT_WESTERN = 0.2
# Two bytes of a legacy text can look like one UTF-8 character by accident.
_ACCIDENTAL_SHARE = 0.1
_STRAY_ZEROS = 0.01
_GOOD, _BAD = re.compile("[^\0-\x7f\udc80-\udcff]"), re.compile("[\udc80-\udcff]")
_LISTED_LINES = 3

_FORMATS = (
    (b"%PDF-", "a PDF", "extract its text first, for example with pdftotext"),
    (b"\x89PNG", "a PNG image", "leave it out"),
    (b"\xff\xd8\xff", "a JPEG image", "leave it out"),
    (b"GIF8", "a GIF image", "leave it out"),
    (b"PK\x03\x04", "a ZIP archive (.docx, .xlsx, .epub and .npz are ZIP archives too)", "extract its text first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first"),
    (b"\x1f\x8b\x08", "compressed a second time", "decompress it first"),
    (b"PAR1", "a Parquet file", "rename it so that its name ends in .parquet"),
    (b"ARROW1", "an Arrow file", "convert it to Parquet or JSON lines first"),
    (b"SQLite format 3", "an SQLite database", "export its text first"),
    (b"\x7fELF", "a program", "leave it out"),
)


@dataclass
class _Census:
    """Counts over the bytes of a file, read as UTF-8."""

    head: bytes = b""
    size: int = 0
    zeros: int = 0
    zeros_at_odd_offsets: int = 0
    neighbours: int = 0
    """Letters and signs above 127 next to another one, without the quotes and dashes of Windows-1252."""
    not_western: int = 0
    """Bytes that are undefined or unlikely in Windows-1252."""
    high: set[int] = field(default_factory=set)
    """Values of bytes above 127."""
    high_bytes: int = 0
    good: int = 0
    """Characters above 127 that are UTF-8."""
    clean: int = 0
    """Such characters on lines where all is UTF-8."""
    bad: int = 0
    """Bytes that are not UTF-8."""
    bad_lines: list[int] = field(default_factory=list)
    """The first lines with such bytes."""

    def add(self, raw: bytes, text: str, line: int) -> None:
        """Count a piece: its bytes, the text decoded from them, and the line on which the text begins."""
        self.head = self.head or raw[:512]
        self.zeros += raw.count(0)
        self.zeros_at_odd_offsets += raw[1 - self.size % 2 :: 2].count(0)
        self.size += len(raw)
        self.neighbours += sum(len(run) for run in re.findall(rb"[\xa1-\xff]{2,}", raw))
        self.not_western += len(_NOT_WESTERN.findall(raw))
        high = re.sub(rb"[\0-\x7f]+", b"", raw)
        self.high |= set(high)
        self.high_bytes += len(high)
        self.good += len(_GOOD.findall(text))
        bad = len(_BAD.findall(text))
        self.bad += bad
        self.clean += sum(len(_GOOD.findall(one)) for one in text.split("\n") if not _BAD.search(one))
        if bad and len(self.bad_lines) <= _LISTED_LINES:
            numbers = (line + n for n, one in enumerate(text.split("\n")) if _BAD.search(one))
            for number in numbers:
                if number not in self.bad_lines:
                    self.bad_lines.append(number)
                if len(self.bad_lines) > _LISTED_LINES:
                    break

    @property
    def is_western(self) -> bool:
        """Whether the text can be Windows-1252, of which Latin-1 text is a part."""
        return (
            not self.high & _NOT_WINDOWS_1252
            and self.neighbours <= _MAX_NEIGHBOURS * self.high_bytes
            and self.not_western <= _MAX_NOT_WESTERN * self.high_bytes
        )

    def lines(self) -> str:
        """List the first bad lines, as in `lines 3, 7, 9 and others`."""
        listed = ", ".join(map(str, self.bad_lines[:_LISTED_LINES]))
        others = " and others" if len(self.bad_lines) > _LISTED_LINES else ""
        return f"line{'s' if len(self.bad_lines) > 1 else ''} {listed}{others}"


def _census(pieces: Iterable[bytes]) -> _Census:
    census, line = _Census(), 1
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for raw in _with_end(pieces):
        text = decoder.decode(raw, final=not raw)
        census.add(raw, text, line)
        line += text.count("\n")
    return census


def _with_end(pieces: Iterable[bytes]) -> Iterator[bytes]:
    yield from pieces
    yield b""


def undecodable(open_pieces: Pieces, name: str, encoding: str, byte: int, offset: int, line: int) -> UserError:
    """Explain a byte that the encoding of the text does not allow.

    Args:
        open_pieces: Gives the bytes of the file from its beginning.
        name: The file.
        encoding: What the text was read as.
        byte: The first bad byte.
        offset: Where it stands, from the beginning of the (decompressed) file.
        line: The line on which it stands, from 1.
    """
    shown = encoding.upper()
    where = f"{name}, line {line}: not {shown} (byte 0x{byte:02x} at offset {offset})"
    census = _census(open_pieces())
    form = _known_format(census.head)
    if form is not None:
        return UserError(f"{name} is {form[0]} (not {shown} at offset {offset}); expected text, so {form[1]}")
    if encoding != "utf-8":
        return UserError(
            f"{where}; the file begins with the byte order mark of {shown}, so it is damaged or cut short. Fetch it "
            f"again, or leave out what is damaged: {_iconv(name, encoding, drop=True)}"
        )
    if census.good >= census.bad:
        bad = "1 byte is" if census.bad == 1 else f"{census.bad} bytes are"
        return UserError(
            f"{where}; expected UTF-8 text. Only {bad} not UTF-8 in the whole file ({census.lines()}). Correct that "
            f"place, or leave out only what is not UTF-8: {_iconv(name, encoding, drop=True)}"
        )
    if census.clean > _ACCIDENTAL_SHARE * census.bad:
        return UserError(
            f"{where}; expected UTF-8 text, but the file mixes encodings: {census.clean} characters are UTF-8 and "
            f"{census.bad} bytes are not ({census.lines()}). Convert those lines by themselves; to list them: "
            f"LC_ALL=C.UTF-8 grep -naxv '.*' {_quoted(name)}"
        )
    if census.is_western:
        return UserError(
            f"{where}; expected UTF-8 text. If it is Western European text from Windows or Latin-1, convert it: "
            f"{_iconv(name, 'WINDOWS-1252')}"
        )
    return UserError(
        f"{where}; expected UTF-8 text. It is in another encoding, and not in Windows-1252 or Latin-1. Find out which, "
        "such as WINDOWS-1251 or KOI8-R (Russian), GB18030 (Chinese), SHIFT_JIS (Japanese) or MACINTOSH, and put it "
        f"for ENCODING: {_iconv(name, 'ENCODING')}"
    )


def binary(open_pieces: Pieces, name: str, offset: int) -> UserError:
    """Explain a zero byte: which binary format it is, UTF-16 without its mark, or a text with stray zero bytes."""
    census = _census(open_pieces())
    form = _known_format(census.head)
    if form is not None:
        return UserError(
            f"{name} is a binary file (a zero byte at offset {offset}): {form[0]}; expected text, so {form[1]}"
        )
    where = f"{name} is a binary file (a zero byte at offset {offset}), expected text"
    if census.zeros > census.size / 4 and not census.size % 2:
        upper = census.zeros_at_odd_offsets / census.zeros
        if upper > 0.95 or upper < 0.05:
            encoding = "UTF-16LE" if upper > 0.5 else "UTF-16BE"
            return UserError(
                f"{name} is {encoding} text without its byte order mark (a zero byte at offset {offset}); expected "
                f"UTF-8, or the mark. Convert it: {_iconv(name, encoding)}"
            )
    if census.zeros <= _STRAY_ZEROS * census.size and not census.bad:
        return UserError(
            f"{where}; but for {census.zeros} zero bytes it is UTF-8 text. Leave them out: "
            f"{shell_command(name, 'tr -d ' + shlex.quote(chr(92) + '000'))} > {output_name('utf8', name)}"
        )
    return UserError(f"{where}; leave it out of the data, or convert it to text first")


def looks_binary(head: bytes) -> bool:
    """Return whether the first bytes of a file are not text: a known format, or a zero byte outside UTF-16/32."""
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    return (b"\0" in head and not marked) or _known_format(head) is not None


def _known_format(head: bytes) -> tuple[str, str] | None:
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it first with tar -xf"
    return next((form[1:] for form in _FORMATS if head.startswith(form[0])), None)


def _iconv(name: str, encoding: str, *, drop: bool = False) -> str:
    # UTF-8 bytes that are no character may be dropped, and nothing else may: -c on another encoding would hide a guess.
    source = {"utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32-le": "UTF-32", "utf-32-be": "UTF-32"}
    options = f"{'-c ' if drop else ''}-f {source.get(encoding, encoding.upper())} -t UTF-8"
    return f"{shell_command(name, 'iconv ' + options, takes_file=True)} > {output_name('utf8', name)}"


def shell_command(name: str, command: str, *, takes_file: bool = False) -> str:
    """Write a shell command that reads the file, decompressed where it is compressed.

    Args:
        name: The file.
        command: Reads stdin.
        takes_file: Whether it takes the name of a file as well.
    """
    path = Path(name)
    compression = None
    if path.is_file():
        with path.open("rb") as file:
            compression = compression_of(file.read(16))
    if compression is not None:
        return f"{compression} -dc {_quoted(name)} | {command}"
    return f"{command} {_quoted(name)}" if takes_file else f"{command} < {_quoted(name)}"


def _quoted(name: str) -> str:
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def output_name(prefix: str, name: str) -> str:
    """Name the output of an advised command, in the current folder, quoted for a shell."""
    return shlex.quote(f"{prefix}-{without_compression(Path(name)).name}")
