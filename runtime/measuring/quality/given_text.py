"""The text that bench, calibrate and inspect read: a given file, or the held-out text of the run."""

from pathlib import Path

from ....contract.errors import UserError
from ....contract.file_names import HELDOUT
from ....contract.text import file as text_file
from ....contract.text.compression import without_compression
from ...generation.engine import Engine
from .perplexity import Text

RECORDS = {".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv"}
"""Files that training reads record by record. Only training knows which field is the text, what marks its end and how a
conversation is written out; a score of the raw JSON would not measure the model."""


def read_text(engine: Engine, given: Path | None, run: Path, option: str, least: int = 1) -> tuple[Text, str]:
    """Read the file given with `option`, or the held-out text in the folder `run`; return the text and its name.

    Raises:
        UserError: there is none, it holds records, cannot be read, is not text, or has less than `least` tokens.
    """
    path = given or run / HELDOUT
    if given is None and not path.is_file():
        raise UserError(f"no {HELDOUT} in {run}, expected what training held out; give a text with: {option} FILE")
    if without_compression(path).suffix.lower() in RECORDS:
        raise UserError(
            f"{path} holds records, expected plain text in UTF-8; leave {option} out to take {HELDOUT} of the run, "
            f"which training writes out of its records, or write their texts into one file and give that: {option} "
            f"{without_compression(path).with_suffix('.txt')}"
        )
    content = text_file.read_text(path)
    ids, spans = engine.tokenizer.encode_with_spans(content)
    if len(ids) < least:
        raise UserError(f"{path} has {len(ids)} tokens, expected at least {least}; give another {option} FILE")
    return Text(content, ids, spans), path.name
