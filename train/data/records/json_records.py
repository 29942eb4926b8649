"""Records of JSON: one list in a file, or one record on each line."""

import json
from collections.abc import Iterator
from pathlib import Path

from ....contract.errors import UserError
from ....contract.text.file import text_pieces
from .fields import Located, record_of, refuse_repeated
from .json_diagnosis import broken_line, broken_list, jq_command, renamed
from .lines import numbered_lines

MAX_DIGITS = 4000  # Python refuses to read integers of more than 4300 digits


def parse(text: str) -> object:
    """Parse one JSON value; a field that occurs twice in a record is remembered, a huge number becomes a float.

    Raises:
        json.JSONDecodeError: the text is not JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=record_of, parse_int=_integer)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def json_lines(path: Path) -> Iterator[Located]:
    """Read the records of JSON lines; empty lines are skipped.

    Raises:
        UserError: a line is not one JSON value; the message describes what it is instead.
    """
    lines = numbered_lines(path)
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = parse(line)
        except json.JSONDecodeError as error:
            is_last = not any(later.strip() for _, later in lines)
            raise broken_line(path, number, line, error, is_last=is_last) from None
        except RecursionError:
            raise UserError(f"{where}: nested too deeply; expected a record of text, so simplify it") from None
        if isinstance(record, list):
            cure = (
                f"A list of records in one file wants the extension .json: rename the file to {renamed(path, '.json')}"
            )
            if any(later.strip() for _, later in lines):
                command = jq_command(path, "-c '{messages: .}'", "messages")
                cure = f"If each line is a conversation, give it a field: {command}"
            raise UserError(f"{where}: a list; expected one JSON record or string per line. {cure}")
        yield where, record


def json_list(path: Path) -> Iterator[Located]:
    """Read the records of one JSON list, or of an object that holds exactly one list.

    Raises:
        UserError: the file is not such a list; the message describes what it is instead.
    """
    # One value has to be read whole; for data larger than memory there is .jsonl.
    text = "".join(piece for _, piece in text_pieces(path))
    if not text.strip():
        return
    try:
        value = parse(text)
    except json.JSONDecodeError as error:
        raise broken_list(path, text, error) from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; expected a list of strings or records") from None
    if isinstance(value, dict):
        lists = [key for key, entry in value.items() if isinstance(entry, list)]
        if len(lists) != 1:
            names = ", ".join(map(str, lists)) if lists else "no list"
            raise UserError(
                f"{path} is an object with {names}; expected a list, or an object that holds exactly one list"
            )
        refuse_repeated(value, lists, str(path))
        value = value[lists[0]]
    if not isinstance(value, list):
        raise UserError(f"{path} holds a {type(value).__name__}; expected a list of strings or of records")
    for number, record in enumerate(value, 1):
        yield f"{path}, record {number}", record
