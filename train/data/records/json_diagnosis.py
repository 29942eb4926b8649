"""Diagnosis of a text that is not JSON: the cause, and advice for it."""

import ast
import json
import re
import warnings
from pathlib import Path

from ....contract.errors import UserError
from ....contract.text.compression import without_compression
from ....contract.text.diagnosis import output_name, shell_command
from .csv_records import carriage_returns

_TOKENS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_LITERAL_BYTES = 2**20  # a longer line is not tried as Python: the parser takes much memory


def broken_line(path: Path, number: int, line: str, error: json.JSONDecodeError, *, is_last: bool) -> UserError:
    """Explain a line of JSON lines that is not one JSON value.

    Args:
        path: The file.
        number: The line, from 1.
        line: Its text.
        error: The error of the parser.
        is_last: Whether no text follows in the file.
    """
    where = f"{path}, line {number}"
    if error.msg == "Extra data":
        return _extra_in_line(path, number, line, error)
    if _ends_inside(line, error):
        if is_last:
            return UserError(
                f"{where}: the file ends inside a record ({error.msg}, column {error.colno}), so it was probably cut "
                f"short; fetch it again{', or delete this line' if number > 1 else ''}"
            )
        if line.lstrip()[0] == "[":
            return UserError(
                f"{where}: a list continues after the end of the line; expected one JSON record or string per line. "
                f"One list in a file wants the extension .json: rename the file to {renamed(path, '.json')}"
            )
        return UserError(
            f"{where}: the record continues after the end of the line (pretty-printed JSON); expected one JSON record "
            f"or string per line. Write each on one line: {jq_command(path, '-c .', 'lines')}"
        )
    if "\r" in line.rstrip() and _cause(line, error) is None:
        return carriage_returns(path, number)
    return UserError(
        f"{where}: not JSON ({_cause(line, error) or error.msg}, column {error.colno}); expected one JSON record or "
        "string per line"
    )


def _extra_in_line(path: Path, number: int, line: str, error: json.JSONDecodeError) -> UserError:
    where = f"{path}, line {number}"
    before, rest = line[: error.pos], line[error.pos :].strip()
    gap = before[len(before.rstrip()) :]
    if "\r" in gap:
        return carriage_returns(path, number)
    if rest.startswith(","):
        return UserError(
            f"{where}: a comma after the record (column {error.colno}); expected line ends alone between records. "
            "Leave the comma out, or put the records between [ and ] in a .json file"
        )
    if rest[0] in '{["':
        return UserError(
            f"{where}: two records on one line (the second begins at column {error.colno}); expected one JSON record "
            f"or string per line. Write each on its own line: {jq_command(path, '-c .', 'lines')}"
        )
    return UserError(
        f"{where}: not JSON ({_shown(rest)} after the record, column {error.colno}); expected one JSON record or "
        "string per line"
    )


def broken_list(path: Path, text: str, error: json.JSONDecodeError) -> UserError:
    """Explain a JSON file that is not one JSON value."""
    where = f"{path}, line {error.lineno}"
    if error.msg == "Extra data":
        before, rest = text[: error.pos], text[error.pos :]
        first = before.rstrip()
        gap = before[len(first) :]
        if "\r" in gap and "\n" not in gap:
            return carriage_returns(path, error.lineno)
        if "\n" in gap and "\n" not in first.strip() and rest[0] in '{["':
            return UserError(
                f"{where}: not JSON (a second value begins at column {error.colno}); one record per line wants the "
                f"extension .jsonl: rename the file to {renamed(path, '.jsonl')}"
            )
        if rest[0] in '{["':
            return UserError(
                f"{where}: a second value begins at column {error.colno}; expected one list. Put all in one list: "
                f"{jq_command(path, '-s .', 'list')}"
            )
        return UserError(f"{where}: not JSON ({_shown(rest)} after the value, column {error.colno}); leave it out")
    if _ends_inside(text, error):
        return UserError(
            f"{where}: the file ends inside a value ({error.msg}), so it was probably cut short; fetch it again"
        )
    return UserError(
        f"{where}: not JSON ({_cause(text, error) or error.msg}, column {error.colno}); correct it there, or write the "
        "file again with a JSON library"
    )


def _ends_inside(text: str, error: json.JSONDecodeError) -> bool:
    """Return whether all of `text` is the beginning of a JSON value that has no end."""
    text = text.rstrip()
    rest = text[error.pos :]
    at_end = (
        rest in ("", ",")  # a parser may point at the last comma
        or error.msg.startswith("Unterminated string")
        or any(token.startswith(rest) for token in _TOKENS)
        or re.fullmatch(r"[-+.eE0-9]+", rest) is not None
        or (error.msg.startswith("Invalid \\") and re.search(r"\\(u[0-9a-fA-F]{0,4})?$", text) is not None)
    )
    return at_end and _is_open(text)


def _is_open(text: str) -> bool:
    """Return whether a string or a bracket is open at the end of `text`, and no bracket closes another kind."""
    closing: list[str] = []
    for token in re.finditer(r'"(?:[^"\\]++|\\.)*+("?)|[\[{\]}]', text, flags=re.DOTALL):
        match token[0][0]:
            case '"' if not token[1]:
                return True
            case "[" | "{" as bracket:
                closing.append("]" if bracket == "[" else "}")
            case "]" | "}" as bracket:
                if not closing or closing.pop() != bracket:
                    return False
    return bool(closing)


def _cause(text: str, error: json.JSONDecodeError) -> str | None:
    """Describe the text where the parser stopped, if it is a common mistake."""
    rest = text[error.pos :]
    before = text[: error.pos].rstrip()
    if (rest[:1] in ("]", "}") and before.endswith(",")) or (rest[:1] == "," and rest[1:].lstrip()[:1] in ("]", "}")):
        return "a trailing comma: no comma may follow the last entry"
    if error.msg.startswith("Invalid control character"):
        if rest[:1] in ("\n", "\r"):
            return r"a line break inside a string, which JSON spells \n"
        code = ord(rest[:1] or " ")
        return f"the control character 0x{code:02x} inside a string, which JSON spells \\u{code:04x}"
    if error.msg.startswith("Invalid \\escape"):
        return r"a backslash that begins no escape, which JSON spells \\"
    if rest.lower().startswith(("<!doctype", "<html")):
        return "a web page, which was probably saved in place of the file"
    if rest.startswith(("//", "/*", "#")):
        return "a comment, which JSON has not"
    if _is_python(text) or rest.startswith("'"):
        return "a Python literal, with single quotes, None or True; JSON has double quotes, null and true"
    if error.msg.startswith(("Expecting value", "Expecting property name")) and rest.strip():
        return f"{_shown(rest)} is no {'JSON value' if 'value' in error.msg else 'name in double quotes'}"
    return None


def _is_python(text: str) -> bool:
    if len(text) > _LITERAL_BYTES:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes: the text is somebody's data, no program
            return isinstance(ast.literal_eval(text.strip()), dict | list | str)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _shown(text: str) -> str:
    word = re.match(r"[\w.+-]+|.", text.strip(), flags=re.DOTALL)
    return repr(word[0][:20]) if word else "nothing"


def renamed(path: Path, suffix: str) -> str:
    """Return the name of a file with another extension, before that of its compression."""
    inner = without_compression(path)
    return inner.with_suffix(suffix).name + path.name[len(inner.name) :]


def jq_command(path: Path, options: str, prefix: str) -> str:
    """Write the command that makes PREFIX-NAME of a file with jq."""
    command = shell_command(str(path), f"jq {options}", takes_file=True)
    return f"{command} > {output_name(prefix, path.name)}"
