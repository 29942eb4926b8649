"""The commands of docs/guides/serve.md, run against a real process on loopback."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.served import events

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
CONSOLE = "\n".join(re.findall(r"^```console\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
CURLS = [line for line in CONSOLE.splitlines() if line.startswith("curl ")]
SCRIPTS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def address(embedder: Path) -> Iterator[str]:
    """Start the server as the guide does, on a free port; give its address."""
    command = [sys.executable, "-m", "adaptive_lm.serve", "serve", "--model", str(embedder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://(127\.0\.0\.1:\d+)", line)
        assert found, line
        yield found[1]
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize("line", CURLS, ids=lambda line: re.sub(r"\W+", "-", line)[:60])
def test_a_curl_line_of_the_guide_works_as_typed(address: str, line: str) -> None:
    words = shlex.split(line.replace("127.0.0.1:8000", address))
    done = subprocess.run([*words, "--fail", "--max-time", "20"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (line, done.stderr, done.stdout)
    if '"stream": true' in line:
        assert done.stdout.endswith("data: [DONE]\n\n")
        assert len(events(done.stdout)) > 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_of_the_guide_works_as_typed(address: str, script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script.replace("127.0.0.1:8000", address)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'dial': 0.5" in done.stdout


def test_the_guide_has_commands_to_run() -> None:
    assert len(CURLS) >= 10
    assert len(SCRIPTS) == 1
