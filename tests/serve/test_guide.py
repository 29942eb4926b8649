"""The commands of docs/guides/serve.md and the programs of examples/clients, run against a real process on loopback."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.serving.served import events

ROOT = Path(__file__).parents[2]
CLIENTS = sorted((ROOT / "examples" / "clients").iterdir())
NEEDS = {
    "anthropic_message.py": "anthropic",
    "langchain_chat.py": "langchain_openai",
    "llm.sh": "llm",
    "lm_eval.sh": "tenacity",
}
GUIDE = (ROOT / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
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


@pytest.mark.slow
@pytest.mark.parametrize("program", CLIENTS, ids=lambda path: path.name)
def test_the_program_of_a_client_runs_as_it_is(address: str, program: Path, tmp_path: Path) -> None:
    library = NEEDS.get(program.name, "openai")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    bin_folder = Path(sys.executable).parent
    environment = {
        **os.environ, "BASE_URL": f"http://{address}/v1", "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": "",
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    command = [sys.executable if program.suffix == ".py" else "sh", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_page_of_clients_shows_the_programs_as_they_are() -> None:
    page = (ROOT / "docs" / "guides" / "clients.md").read_text(encoding="utf-8")
    assert len(CLIENTS) == 5
    assert [path.name for path in CLIENTS if path.read_text(encoding="utf-8").strip() not in page] == []
