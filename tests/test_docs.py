"""The README's commands work as typed: each is run, in order, in an empty folder, with less training.

What installs the project or is `make` itself is checked by whoever runs this test.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETUP = {"make", "pip"}
SMALLER = ["dim=64", "num_layers=2", "num_heads=2", "num_kv_heads=1", "vocab_size=300", "ffn.expert_dim=64"]
SHORTER = {
    "train moe-57m": [part for setting in SMALLER for part in ("--set", f"model.{setting}")],
    "train": ["--steps", "2", "--set", "trainer.final_eval_tokens=512"],
    "calibrate": ["--tokens", "512", "--repeats", "1", "--new-tokens", "8"],
    "inspect": ["--tokens", "512"],
    "bench": ["--repeats", "1", "--new-tokens", "8", "--text-tokens", "256"],
}
"""Appended to a command that begins so; the last value of an option counts."""


def commands() -> list[list[str]]:
    """Every command line of the README's sh blocks, split as a shell would; `&&` separates."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split(" && ")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def test_every_command_of_the_readme_is_known() -> None:
    found = {words[0] for words in commands()}
    assert "adaptive" in found
    assert found <= SETUP | {"adaptive"}, "teach this test to run the new command"


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_typed(tmp_path: Path) -> None:
    # no line twice: of a text that repeats itself, a decision that stands at its threshold stands there every time
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "nobler", "mind", "slings", "arrows", "fortune"]
    chosen = random.Random(1)
    text = "".join(" ".join(chosen.choices(words, k=9)).capitalize() + ".\n" for _ in range(400))
    (tmp_path / "my-text.txt").write_text(text)
    program = Path(sys.executable).with_name("adaptive")
    environment = {**os.environ, "COLUMNS": "200"}
    ran = 0
    for words in commands():
        if words[0] != "adaptive":
            continue
        shorter = SHORTER.get(" ".join(words[1:3])) or SHORTER.get(words[1], [])
        command = [str(program), *words[1:], *shorter]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        ran += 1
    assert ran >= 6

    script = "\n".join(PYTHON_BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
