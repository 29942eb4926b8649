"""Run the programs of examples/clients against a server, and write docs/guides/clients.md with what they printed.

    adaptive serve --model runs/demo/model
    python docs/tools/clients.py --address http://127.0.0.1:8000

Needs every client: `pip install openai anthropic langchain-openai llm lm_eval`.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "examples" / "clients"
PAGE = ROOT / "docs" / "guides" / "clients.md"
HEAD = """# Clients

What each client needs to talk to the server: its address, and nothing of ours. The programs are in
`examples/clients/`; below each is what it printed, with the model of `make demo` (`python docs/tools/clients.py`).
"""
SECTIONS = {
    "openai_chat.py": ("OpenAI", "pip install openai"),
    "anthropic_message.py": ("Anthropic", "pip install anthropic"),
    "langchain_chat.py": ("LangChain", "pip install langchain-openai"),
    "llm.sh": ("The command `llm`", "pip install llm"),
    "lm_eval.sh": ("lm-evaluation-harness", "pip install 'lm_eval[api]'"),
}


def run(name: str, address: str) -> str:
    """Return what a program prints.

    Raises:
        SystemExit: It fails.
    """
    command = [sys.executable if name.endswith(".py") else "sh", str(CLIENTS / name)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "BASE_URL": f"{address}/v1", "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name}:\n{done.stderr[-3000:]}")
    return done.stdout


def main() -> None:
    """Run all, and write the page."""
    parser = argparse.ArgumentParser(description="Run every client, and write what it printed into the guide.")
    parser.add_argument("--address", default="http://127.0.0.1:8000", help="of a server with the model `demo`")
    address = parser.parse_args().address.rstrip("/")
    parts = [HEAD]
    for name, (title, install) in SECTIONS.items():
        language = "python" if name.endswith(".py") else "bash"
        source = (CLIENTS / name).read_text("utf-8").strip()
        printed = re.sub(r"[ \t]+$", "", run(name, address), flags=re.MULTILINE).strip("\n")
        parts.append(
            f"## {title}\n\n```console\n{install}\n```\n\n```{language}\n{source}\n```\n\nIt prints:\n\n"
            f"```text\n{printed}\n```\n"
        )
        print(f"{name}: done", file=sys.stderr)
    PAGE.write_text("\n".join(parts), "utf-8")


if __name__ == "__main__":
    main()
