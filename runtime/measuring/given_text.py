"""The text that bench, calibrate and inspect read: a file that was given, or what training held out."""

from pathlib import Path

from ...contract.errors import UserError
from ...contract.file_names import HELDOUT
from ..generation.engine import Engine
from .perplexity import Text

RECORDS = {".csv", ".json", ".jsonl", ".parquet"}
"""What training reads record by record. Which field is the text, what marks its end and how a conversation is written
out is known to training alone, and braces scored as text would say nothing of the model."""


def read_text(engine: Engine, given: Path | None, run: Path, option: str, least: int = 1) -> tuple[Text, str]:
    """The text and its name: the file given after `option`, or what was held out of the run in folder `run`.

    Raises:
        UserError: there is none, it holds records, cannot be read, is not UTF-8, or has less than `least` tokens.
    """
    path = given or run / HELDOUT
    if given is None and not path.is_file():
        raise UserError(f"no {HELDOUT} in {run}, expected what training held out; give a text with: {option} FILE")
    if path.suffix.lower() in RECORDS:
        raise UserError(
            f"{path} holds records, expected plain text in UTF-8; leave {option} out to take {HELDOUT} of the run, "
            f"which training writes out of its records, or write their texts into one file and give that: {option} "
            f"{path.with_suffix('.txt')}"
        )
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give another {option} FILE") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid UTF-8 at byte {error.start}; give another {option} FILE") from error
    ids, spans = engine.tokenizer.encode_with_spans(content)
    if len(ids) < least:
        raise UserError(f"{path} has {len(ids)} tokens, expected at least {least}; give another {option} FILE")
    return Text(content, ids, spans), path.name
