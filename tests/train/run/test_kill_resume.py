"""A run that is killed again and again equals one that is not: the benchmark of that, with fewer kills."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "kill_resume.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_that_is_killed_at_any_moment_ends_like_one_that_is_not() -> None:
    """T1, T8, T14, T16: with saves in the background; in a save, in a prune, in the first steps, and anywhere else."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "5", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert len(found["kills"]) == 5
    assert {kill["moment"] for kill in found["kills"]} == {"any", "in a save", "in a prune", "first steps"}
    assert sum(kill["cut_saves"] for kill in found["kills"]) >= 1, "no save was cut, so nothing was tested"
    assert sum(kill["cut_deletions"] for kill in found["kills"]) >= 1, "no deletion was cut"
    assert all(found["equal"].values()), found["equal"]
    assert {"tokens_digest", "weights and controllers"} <= found["equal"].keys()
    assert len(found["tokens_digest"]) == 64
