"""Logs on stderr: JSON for programs, plain lines for people.

A line holds names, numbers and addresses; never a prompt, an answer, a header or a key (S39).
"""

import logging
import logging.config
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "plain"]
LONGEST = 1000
"""Characters of one value; a longer one is cut."""
QUIET = ("httpx", "httpcore", "asyncio", "multipart", "uvicorn.error")
"""Libraries whose lines at `info` say nothing that ours do not."""


def configure_logs(level: Level = "info", style: Format = "auto", stream: TextIO | None = None) -> None:
    """Send our log and that of libraries to one stream, in one format. May be called again.

    Args:
        level: The least that is logged.
        style: "auto" takes plain lines on a terminal, else JSON.
        stream: Where to; stderr by default.
    """
    stream = sys.stderr if stream is None else stream
    plain = style == "plain" or (style == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        one_line,
    ]
    renderer: structlog.typing.Processor = plain_line if plain else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, one_line, renderer],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if getattr(old, "adaptive", False):
            root.removeHandler(old)
    handler.adaptive = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def one_line(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters and cut what is long, so that a client cannot forge a line (S38, CWE-117)."""
    return {safe(key): safe(value) for key, value in event.items()}


def safe(value: Any) -> Any:
    r"""Return the value with control characters as `\x0a`, at most `LONGEST` characters; a traceback is not cut."""
    if not isinstance(value, str):
        return value if value is None or isinstance(value, bool | int | float | list) else safe(str(value))
    if len(value) > LONGEST and not value.startswith("Traceback "):
        value = value[:LONGEST] + "..."
    if value.isprintable():
        return value
    return "".join(each if each.isprintable() else _escaped(ord(each)) for each in value)


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def plain_line(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """Write `time level event key=value ...`; values with spaces are quoted. A traceback takes indented lines."""
    exception = event.pop("exception", None)
    head = [str(event.pop("timestamp", ""))[:19], f"{event.pop('level', ''):<7}", str(event.pop("event", ""))]
    fields = [f"{key}={_plain(value)}" for key, value in event.items() if value is not None]
    line = " ".join(head + fields)
    if exception:
        line += "".join(f"\n  | {each}" for each in str(exception).split("\\x0a"))
    return line


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return (
        text
        if text and " " not in text and '"' not in text and "=" not in text
        else '"' + text.replace('"', '\\"') + '"'
    )
