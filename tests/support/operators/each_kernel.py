"""Run the digest of a test file once for every set of instructions that this machine has."""

import os
import subprocess
import sys
from pathlib import Path

from support.operators.kernels import open_library, tables

TESTS = Path(__file__).parents[2]


def digest_of_each_kernel(file: str) -> dict[str, str]:
    """Return what `digest()` of a test file prints, by set of instructions, each in a process of its own.

    The set is chosen when the library is loaded, so one process has only one.
    """
    path = Path(file)
    code = f"import {path.stem}; print({path.stem}.digest())"
    paths = os.pathsep.join([str(path.parent), str(TESTS)])
    digests = {}
    for name in [table.name for table in tables(open_library())]:
        environment = os.environ | {"ADAPTIVE_KERNEL": name, "PYTHONPATH": paths}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        digests[name] = run.stdout
    assert len(digests) > 1, "this machine has one set of instructions: nothing is compared"
    return digests
