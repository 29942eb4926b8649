"""The reader of text: the encodings it decodes, the bytes it refuses, and advice that works when it is typed."""

import bz2
import codecs
import gzip
import lzma
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.cases import each

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.text import compression as text_compression
from adaptive_lm.contract.text.file import decode, decoded, read_text, text_pieces

MIXED = "Zeile eins\r\nзима 冬 👩‍👩‍👧 é\rx\n\n  indented\n" * 300
COMPRESS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(name, content)` makes a file in the current folder and gives its path."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def typed(advice: str) -> subprocess.CompletedProcess:
    """Type the command at the end of a message."""
    command = re.search(r"(?:iconv |LC_ALL=|tr -d |gzip -dc |bzip2 -dc |xz -dc ).*$", advice)
    assert command, advice
    return subprocess.run(["bash", "-c", command[0]], capture_output=True)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_text(path)
    return str(caught.value)


@each("size", [1, 7, 64, 2**20])
@each("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_of_every_encoding_is_decoded_wherever_its_bytes_are_cut(encoding, size):
    data = MIXED.encode(encoding)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    result = list(decoded(lambda: pieces, "a.txt"))
    assert "".join(text for _, text in result) == MIXED
    assert b"".join(raw for raw, _ in result) == data


@pytest.mark.parametrize(("mark", "encoding"), [(codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")])
def test_text_of_either_byte_order_is_decoded(mark, encoding):
    assert decode(mark + MIXED.encode(encoding), "stdin") == MIXED


def test_line_ends_stay_and_a_mark_inside_the_text_stays(write):
    assert read_text(write("a.txt", "\ufeffa\r\nb\rc\n\ufeff".encode())) == "a\r\nb\rc\n\ufeff"


@pytest.mark.parametrize("content", [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, b"x", b"\r"])
def test_a_text_of_next_to_nothing_is_read(write, content):
    path = write("a.txt", content)
    assert (
        read_text(path)
        == decode(content, "stdin")
        == content.replace(codecs.BOM_UTF8, b"").decode("utf-16" if content[:1] == b"\xff" else "utf-8")
    )


@pytest.mark.parametrize(
    "compress", [gzip.compress, bz2.compress, lzma.compress, zstd], ids=["gzip", "bzip2", "xz", "zstd"]
)
@pytest.mark.parametrize("name", ["a.txt.z", "a.txt"])
def test_compressed_text_is_decompressed_whatever_its_name(write, compress, name):
    text = MIXED * 50
    whole = text.encode("utf-16")
    # Of several members, cut anywhere.
    path = write(name, compress(whole[:1001]) + compress(whole[1001:]))
    assert read_text(path) == text
    assert decode(path.read_bytes(), "stdin") == text


@pytest.mark.parametrize(
    "compress", [gzip.compress, bz2.compress, lzma.compress, zstd], ids=["gzip", "bzip2", "xz", "zstd"]
)
@pytest.mark.parametrize("cut", [4, 100])
def test_compressed_data_that_is_cut_short_is_refused(write, compress, cut):
    data = compress(os.urandom(2000).hex().encode())
    assert re.search(
        r"a\.gz is damaged \w+ data \(.*\); fetch or compress it again", refused(write("a.gz", data[:-cut]))
    )


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_a_flipped_bit_in_compressed_data_is_noticed(write, compress):
    data = bytearray(compress(MIXED.encode()))
    data[len(data) // 2] ^= 1
    assert "damaged" in refused(write("a.gz", bytes(data)))


@pytest.mark.parametrize("name", COMPRESS)
def test_bytes_behind_compressed_data_are_refused_and_the_advice_keeps_the_whole_part(write, name):
    suffix = {"gzip": "gz", "bzip2": "bz2", "xz": "xz"}[name]
    data = COMPRESS[name](MIXED.encode())
    message = refused(write(f"a b.txt.{suffix}", data + b"garbage"))
    assert f"the {name} data ends at offset {len(data)} and other bytes follow" in message
    typed(message)
    assert Path("a b.txt").read_bytes().decode() == MIXED


@pytest.mark.parametrize("name", COMPRESS)
def test_zero_bytes_may_pad_compressed_data(write, name):
    assert read_text(write("a.gz", COMPRESS[name](MIXED.encode()) + b"\0" * 100_000)) == MIXED


@pytest.mark.parametrize("library", text_compression.ZSTD_LIBRARIES)
def test_every_library_that_reads_zstandard_reads_all_frames_and_notices_a_cut(write, monkeypatch, library):
    pytest.importorskip(library)
    monkeypatch.setattr(text_compression, "ZSTD_LIBRARIES", (library,))
    data = zstd(MIXED.encode() * 300) + zstd(MIXED.encode())
    assert read_text(write("a.txt.zst", data)) == MIXED * 301
    assert "damaged zstd data" in refused(write("a.txt.zst", data[:-4]))
    assert "damaged zstd data" in refused(write("a.txt.zst", data + b"garbage"))


def test_zstandard_without_a_library_says_what_to_install(write, monkeypatch):
    monkeypatch.setattr(text_compression, "ZSTD_LIBRARIES", ("no_such_library",))
    assert "pip install zstandard" in refused(write("a.zst", zstd(b"text")))


def test_a_text_that_begins_like_bzip2_is_text(write):
    assert read_text(write("a.txt", b"BZh9 is a signature")) == "BZh9 is a signature"


def test_memory_stays_flat_while_a_file_is_decompressed(write):
    path = write("a.txt.gz", gzip.compress(b"the same line again\n" * 2**20))
    assert max(len(raw) for raw, _ in text_pieces(path)) <= 2 * text_compression.CHUNK_BYTES


def test_a_pipe_is_read_as_a_file_is(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(codecs.BOM_UTF8 + MIXED.encode()))
    writer.start()
    assert read_text(path) == MIXED
    writer.join()


def test_what_the_system_refuses_keeps_its_reason(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.txt: No such file or directory"):
        read_text(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="Is a directory"):
        read_text(tmp_path)


def test_a_git_lfs_pointer_is_named_with_what_fetches_the_file(write):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    message = refused(write("a.txt", pointer))
    assert "is a Git LFS pointer" in message
    assert message.endswith("git lfs pull")
    with pytest.raises(UserError, match="Git LFS pointer"):
        decode(pointer, "stdin")


@pytest.mark.parametrize("size", [1, 7, 2**20])
def test_bad_utf8_names_line_and_offset(size):
    content = "été\n" * 40
    bad = b"\xef\xbb\xbf" + content.encode() + b"fine caf\xe9 bad"
    pieces = [bad[at : at + size] for at in range(0, len(bad), size)]
    place = rf"a\.txt, line 41: not UTF-8 \(byte 0xe9 at offset {len(content.encode()) + 11}\)"
    with pytest.raises(UserError, match=place):
        list(decoded(lambda: pieces, "a.txt"))


def test_windows_1252_is_told_apart_and_its_advice_gives_the_quotes_back(write):
    text = "He said “hello” and left – for 5 €\n"
    message = refused(write("it's.txt", text.encode("cp1252") * 100))
    assert "line 1: not UTF-8 (byte 0x93 at offset 8)" in message
    assert typed(message).returncode == 0
    assert Path("utf8-it's.txt").read_bytes().decode() == text * 100


def test_a_compressed_legacy_text_is_converted_by_its_advice(write):
    typed(refused(write("a.txt.gz", gzip.compress("café\r\n".encode("latin-1")))))
    assert Path("utf8-a.txt").read_bytes().decode() == "café\r\n"


def test_a_file_that_is_utf8_but_for_a_byte_keeps_its_characters_under_the_advice(write):
    text = "He said “hello” café\n" * 100
    message = refused(write("a.txt", text.encode() + b"caf\xe9\n"))
    assert "Only 1 byte is not UTF-8 in the whole file (line 101)" in message
    assert "WINDOWS" not in message
    typed(message)
    assert Path("utf8-a.txt").read_bytes().decode() == text + "caf\n"


def test_a_character_that_the_end_of_the_file_cuts_is_left_out_by_the_advice(write):
    message = refused(write("a.txt", "зима\n冬".encode()[:-1]))
    assert "line 2: not UTF-8 (byte 0xe5 at offset 9)" in message
    typed(message)
    assert Path("utf8-a.txt").read_bytes().decode() == "зима\n"


def test_a_file_of_two_encodings_is_named_and_the_advice_lists_the_lines(write):
    lines = ["ä ö\n".encode()] * 4 + ["é è ê ë\n".encode("latin-1")] * 5
    message = refused(write("a.txt", b"".join(lines)))
    assert "mixes encodings: 8 characters are UTF-8 and 20 bytes are not (lines 5, 6, 7 and others)" in message
    assert typed(message).stdout.count(b"\n") == 5


@pytest.mark.parametrize(
    "text", ["é = 1\n", "caf\xe9", "\xbfQu\xe9?\n", "Fa\xdfb\xe4nder\n", "l\u2019\u0153uvre \u2013 10 \u20ac\n"]
)
def test_western_text_is_told_apart_by_a_single_letter(write, text):
    message = refused(write("a.txt", text.encode("cp1252")))
    assert "-f WINDOWS-1252" in message
    typed(message)
    assert Path("utf8-a.txt").read_bytes().decode() == text


@pytest.mark.parametrize("encoding", ["cp1251", "shift_jis", "mac_roman", "gb18030", "cp437", "koi8-r"])
def test_a_legacy_encoding_that_is_not_western_is_not_called_windows_1252(write, encoding):
    text = {
        "cp1251": "Зима была долгой.\n",
        "koi8-r": "Зима была долгой.\n",
        "shift_jis": "長い冬だった。\n",
        "gb18030": "冬天很长\n",
        "mac_roman": "Une année déjà passée\n",
        "cp437": "Une année passée\n",
    }[encoding]
    message = refused(write("a.txt", text.encode(encoding) * 50))
    assert "not in Windows-1252" in message
    typed(message.replace("-f ENCODING", f"-f {encoding.replace('mac_roman', 'MACINTOSH')}"))
    assert Path("utf8-a.txt").read_bytes().decode() == text * 50


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark_is_named_and_converted_by_the_advice(write, encoding):
    message = refused(write("a.txt", "hello you\n".encode(encoding)))
    assert "without its byte order mark" in message
    typed(message)
    assert Path("utf8-a.txt").read_bytes() == b"hello you\n"


def test_utf16_that_is_cut_inside_a_character_is_named_and_kept_but_for_it(write):
    message = refused(write("a.txt", "two\nlines".encode("utf-16")[:-1]))
    assert "line 2: not UTF-16-LE" in message
    typed(message)
    assert Path("utf8-a.txt").read_bytes().decode() == "two\nline"


def test_stray_zero_bytes_are_left_out_by_the_advice(write):
    text = "many words of text\n" * 50
    message = refused(write("-a.txt", text.encode() + b"\0\0"))
    assert f"a zero byte at offset {len(text)}" in message
    typed(message)
    assert Path("utf8--a.txt").read_bytes().decode() == text


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF"),
        (b"PK\x03\x04\x14\0\0\0", "a ZIP archive"),
        (b"PAR1\x15\0", "a Parquet file: rename"),
        (b"name".ljust(257, b"\0") + b"ustar", "a tar archive"),
        (bytes(range(256)) * 4, "leave it out of the data"),
    ],
)
def test_a_binary_file_is_named_by_its_kind(write, content, what):
    assert what.split(":")[0] in refused(write("a.txt", content))


def test_the_reader_imports_the_standard_library_alone():
    code = (
        "import sys; import adaptive_lm.contract.text.file; "
        "print([m for m in ('numpy', 'pyarrow', 'click') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
