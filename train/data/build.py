"""Tokenise one source: segments in, cache entry out."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .cache import Entry, EntryWriter
from .config import TokenizerConfig
from .sources.documents import Segment
from .tokenizers.encoder import Encoder

BATCH_CHARS = 2 * 2**20  # tokenised at once: enough for every core, little in memory
HELDOUT_BYTES = 2**20
SAMPLE_CHARS = 2**16


def write_entry(
    folder: Path,
    segments: Iterable[Segment],
    encoder: Encoder,
    *,
    wide: bool,
    masked: bool,
    eos_id: int,
    end: str,
    bos_id: int | None,
    lead: tuple[int, str] | None,
    unknown: int | None,
    advance: Callable[[int], None],
) -> None:
    """Tokenise `segments` into the arrays of an entry in `folder`.

    Args:
        folder: Where the arrays are written.
        segments: The text.
        encoder: Text to ids.
        wide: Whether ids take four bytes.
        masked: Whether tokens may be left out of the loss.
        eos_id: Token id that ends a document.
        end: Its text, for the held-out text.
        bos_id: Token id that begins a document without a chat template; None for none.
        lead: Id and text of the token that begins each document and is not scored; None for none.
        unknown: Token id of what the vocabulary lacks; None where it lacks nothing.
        advance: Called with the bytes of text done.
    """
    writer = EntryWriter(folder, wide, masked, eos_id)
    eos = np.array([eos_id])
    bos = None if bos_id is None else np.array([bos_id])
    stats = dict.fromkeys(
        ("train_bytes", "train_scored", "train_unknown", "val_bytes", "val_scored", "val_unknown", "val_scored_bytes"),
        0,
    )
    heldout: list[bytes] = []
    heldout_bytes = 0
    try:
        for segment, ids in _encoded(segments, encoder):
            part = "val" if segment.held_out else "train"
            if segment.starts:
                writer.start_document(part)
                if bos is not None and not segment.chat:
                    writer.append(part, bos, segment.scored)
                    stats[f"{part}_scored"] += segment.scored
                if lead is not None:
                    writer.append(part, np.array([lead[0]]), scored=False)
            writer.append(part, ids, segment.scored)
            if segment.eos:
                writer.append(part, eos, segment.scored)
            raw = len(segment.text.encode())
            stats[f"{part}_bytes"] += raw
            if segment.scored:
                stats[f"{part}_scored"] += len(ids) + segment.eos
            if unknown is not None:
                stats[f"{part}_unknown"] += int(np.count_nonzero(ids == unknown))
            if segment.held_out:
                stats["val_scored_bytes"] += raw * segment.scored
                if heldout_bytes < HELDOUT_BYTES:
                    begin = lead[1] if lead is not None and segment.starts else ""
                    heldout.append((begin + segment.text + end * segment.eos).encode())
                    heldout_bytes += len(heldout[-1])
            advance(raw)
        text = b"".join(heldout)[:HELDOUT_BYTES].decode(errors="ignore").removesuffix(end)
        writer.finish(stats, text)
    finally:
        writer.close()


def _encoded(segments: Iterable[Segment], encoder: Encoder) -> Iterator[tuple[Segment, NDArray[np.uint32]]]:
    batch: list[Segment] = []
    size = 0
    for segment in segments:
        batch.append(segment)
        size += len(segment.text) + 64  # many empty segments fill a batch too
        if size >= BATCH_CHARS:
            yield from zip(batch, encoder.encode_batch([s.text for s in batch]), strict=True)
            batch, size = [], 0
    if batch:
        yield from zip(batch, encoder.encode_batch([s.text for s in batch]), strict=True)


def expected_bytes(segments: Iterable[Segment], encoder: Encoder, num_bytes: int, token_bytes: int) -> int:
    """Estimate the bytes of the entry of a text of `num_bytes`, from the tokens of its first segments."""
    text = "".join(segment.text for segment in islice(segments, 64))[:SAMPLE_CHARS]
    tokens = len(encoder.encode_batch([text])[0])
    return int(num_bytes * token_bytes * tokens / max(1, len(text.encode()))) + 2**20


def report_unknown(entries: list[Entry], size: int, config: TokenizerConfig, log: Callable[[str], None]) -> None:
    """Report how much of the held-out text is not in a vocabulary of `size`, if any."""
    unknown = sum(entry.stats["val_unknown"] for entry in entries)
    if not unknown:
        return
    total = sum(len(entry.val.tokens) - 1 for entry in entries)
    full = config.kind == "words" and size >= config.size_limit
    cure = "a larger tokenizer.vocab_size takes in more of them, and " if full else ""
    log(
        f"{unknown:,} of {total:,} held-out tokens ({unknown / total:.2%}) are not in the vocabulary of the "
        f"{config.kind} tokenizer and count as <unk>, so loss and bits per byte seem better "
        f"than they are; {cure}bpe and bytes can write any text"
    )


def free_bytes(folder: Path) -> int:
    """Count the free bytes where `folder` is or would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
