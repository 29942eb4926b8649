"""Run the digests of test files once for every set of instructions that this machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path

from support.operators.kernels import open_library, tables

TESTS = Path(__file__).parents[2]
CODE = "import json, runpy, sys; print(json.dumps({file: runpy.run_path(file)['digest']() for file in sys.argv[1:]}))"


def digests_of_each_kernel(*files: str) -> dict[str, dict[str, str]]:
    """Return what `digest()` of each test file returns, by set of instructions, each set in a process of its own.

    The set is chosen when the library is loaded, so one process has only one.
    """
    digests = {}
    for name in [table.name for table in tables(open_library())]:
        environment = os.environ | {"ADAPTIVE_KERNEL": name, "PYTHONPATH": str(TESTS)}
        paths = [str(TESTS / file) for file in files]
        run = subprocess.run(
            [sys.executable, "-c", CODE, *paths], env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        digests[name] = json.loads(run.stdout)
    assert len(digests) > 1, "this machine has one set of instructions: nothing is compared"
    return digests
