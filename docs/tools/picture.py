"""Draw the pictures of the README: real commands, as a terminal shows them, saved as SVG.

    make demo
    .venv/bin/python docs/tools/picture.py
    make demo-chat
    .venv/bin/python docs/tools/picture.py --chat

The first is `adaptive generate --usage tokens`, the second the model of `make demo-chat`, asked and measured. They run
in a pseudo-terminal, so the colours and widths are those that people see. Only the table's rows after the first eight
are left out, and the picture says how many. It names no font file, so nothing is loaded from elsewhere.
"""

import argparse
import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

OUT = Path(__file__).parents[1] / "figures" / "generation.svg"
WIDTH = 104
ROWS = 8
"""Rows of the table that are shown."""
FONTS = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
PROMPT = "How do mountains form?"
CHAT_OUT = OUT.with_name("demo-chat.svg")
CHAT = (
    ["generate", "--model", "runs/smollm2/model", "--temperature", "0", "--max-new-tokens", "60", "What is gravity?"],
    ["bench", "--model", "runs/smollm2/model"],
)
"""The commands of the second picture."""
THEME = TerminalTheme(
    (250, 250, 250),
    (36, 41, 47),
    [(36, 41, 47)] * 8,
)
"""Dark letters on near-white: readable on a light page and on a dark one, since the picture has its own background."""


def terminal_output(command: list[str]) -> str:
    """Return everything that `command` writes to a terminal of WIDTH columns, colours included.

    Raises:
        SystemExit: the command failed; its output is printed.
    """
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 60, WIDTH, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONUNBUFFERED": "1"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        chunks = []
        while True:
            try:
                chunk = os.read(main, 4096)
            except OSError:  # on Linux a closed pseudo-terminal ends in EIO, not in an empty read
                break
            if not chunk:
                break
            chunks.append(chunk)
    os.close(main)
    text = b"".join(chunks).decode("utf-8").replace("\r\n", "\n")
    if process.returncode:
        raise SystemExit(text)
    return text


def shortened(lines: list[Text]) -> list[Text]:
    """Keep the first ROWS rows of the token table, and say how many are left out."""
    header = next(number for number, line in enumerate(lines) if line.plain.startswith("token "))
    end = next(number for number, line in enumerate(lines) if re.match(r"\d+ tokens", line.plain))
    first_left_out = header + 1 + ROWS
    if end <= first_left_out:
        return lines
    note = Text(f"... and a row for each of the other {end - first_left_out} tokens", style="dim")
    return [*lines[:first_left_out], note, *lines[end:]]


def svg(lines: list[Text]) -> str:
    """Render the lines as one SVG without outside addresses."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line, no_wrap=False, highlight=False)
    picture = console.export_svg(title="adaptive", theme=THEME, unique_id="generation")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = re.sub(r"<!--.*?-->\s*", "", picture, flags=re.DOTALL)
    picture = picture.replace("Fira Code, monospace", FONTS)
    picture = "".join(line.rstrip() + "\n" for line in picture.splitlines())
    assert "url(http" not in picture
    return picture


def chat(program: str) -> list[Text]:
    """Run the commands of the second picture, and return what the terminal shows."""
    lines: list[Text] = []
    for command in CHAT:
        lines += [Text(f"$ adaptive {shlex.join(command)}", style="bold")]
        output = terminal_output([program, *command]).rstrip("\n")
        lines += [*(Text.from_ansi(line) for line in output.split("\n")), Text("")]
    return lines[:-1]


def main() -> None:
    """Run the commands, and write the picture to `--out`."""
    parser = argparse.ArgumentParser(description="Draw a picture of the README from real commands.")
    parser.add_argument("--chat", action="store_true", help="the model of `make demo-chat` in place of a generation")
    parser.add_argument("--model", type=Path, default=Path("runs/demo/model"), help="an exported model")
    parser.add_argument("--out", type=Path, help="where to write the SVG")
    options = parser.parse_args()
    program = str(Path(sys.executable).with_name("adaptive"))
    out = options.out or (CHAT_OUT if options.chat else OUT)
    if options.chat:
        lines = chat(program)
    else:
        shared = ["--temperature", "0", "--usage", "tokens"]
        output = terminal_output([program, "generate", PROMPT, "--model", str(options.model), "--seed", "0", *shared])
        command = Text(f'$ adaptive generate "{PROMPT}" --model runs/demo/model {shlex.join(shared)}', style="bold")
        shown = [Text.from_ansi(line) for line in output.rstrip("\n").split("\n")]
        lines = [command, *shortened(shown)]
    out.write_text(svg(lines), encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
