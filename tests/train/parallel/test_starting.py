"""Ranks started by `--nproc`, by torchrun, by a SLURM script and by a Kubernetes Job: how they end and resume."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from support import ranks

from adaptive_lm.train.commands.train import train
from adaptive_lm.train.parallel.launch import without_option
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.checkpoints.names import list_checkpoints
from adaptive_lm.train.run.metrics import read_metrics

ROOT = Path(__file__).parents[3]
ADAPTIVE = [sys.executable, "-m", "adaptive_lm.serve"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a text and the config of a tiny run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    ranks.write_text(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(ranks.BASE))
    return tmp_path


def free_port() -> str:
    with socket.socket() as held:
        held.bind(("localhost", 0))
        return str(held.getsockname()[1])


def until(true: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    for _ in range(600):
        if true():
            return
        assert process.poll() is None, f"ended with {process.returncode} before"
        time.sleep(0.1)
    process.kill()
    raise AssertionError("it never came so far")


def steps_of(run: Path) -> list[int]:
    return [record["step"] for record in read_metrics(run / "metrics.jsonl")]


@pytest.mark.slow
def test_nproc_passes_a_signal_on_and_keeps_the_exit_code(place: Path) -> None:
    """Also what is refused: one message, no traceback, one exit code."""
    run = place / "runs" / "a"
    command = [*ADAPTIVE, "train", "tiny.yaml", "--name", "a", "--nproc", "2", "--steps", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        until(lambda: len(steps_of(run)) > 2, started)
        started.send_signal(signal.SIGTERM)
        out, story = started.communicate(timeout=60)
    assert started.returncode == 143, story
    assert out == "runs/a\n", "only one rank speaks"
    assert story.count("finishing the step, then saving") == 1
    assert load_checkpoint(run).step == max(steps_of(run))
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 1
    assert again.stderr.startswith("error: runs/a exists already; resume it:")
    assert again.stderr.count("\n") == 1
    assert again.stdout == ""


@pytest.mark.slow
def test_torchrun_starts_a_group_again_that_lost_a_rank_and_the_run_goes_on(place: Path) -> None:
    """A rank is killed in step 7; the group that torchelastic starts after it resumes from step 4."""
    script = place / "rank.py"
    script.write_text(
        "import os, signal\n"
        "from adaptive_lm.train.data import Corpus\n"
        "from adaptive_lm.train.__main__ import main\n"
        "draw, calls = Corpus.batch, []\n"
        "def dying(self, *arguments, **options):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 7 and os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return draw(self, *arguments, **options)\n"
        "Corpus.batch = dying\n"
        "main()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    free = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [*torchrun, *free, str(script), "tiny.yaml"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "from step 4" in done.stderr
    (run,) = (place / "runs").iterdir()  # without a name, the second group still finds the run of the first
    assert load_checkpoint(run).step == 8
    assert steps_of(run) == list(range(1, 9))


SRUN = """#!/usr/bin/env python
import os, signal, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
nodes = [
    subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(n), "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"})
    for n in range(2)
]
signal.signal(signal.SIGTERM, lambda number, _: [node.send_signal(number) for node in nodes])
open("srun.pid", "w").write(str(os.getpid()))
sys.exit(max(node.wait() for node in nodes))
"""
SCONTROL = """#!/bin/sh
case "$1" in
  show) echo localhost; echo localhost ;;
  requeue) echo "$2" >> requeued ;;
esac
"""


RANK = """#!/bin/sh
trap 'echo signal >> "$RANK.said"; exit 143' TERM
echo "$RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT $*" > "$RANK.said"
test -f code && exit "$(cat code)"
touch "$RANK.waits"
while true; do sleep 0.02; done
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder that stands for two nodes of a SLURM cluster, and change to it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[0-1]")
    return tmp_path


def test_the_slurm_script_is_queued_again_after_a_signal_and_after_nothing_else(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T29 without training: ranks that only note how they are started, and end as ranks that have saved do."""
    script = ROOT / "examples" / "slurm.sbatch"
    assert {"#SBATCH --signal=TERM@300", "#SBATCH --requeue"} <= set(script.read_text().splitlines())
    (slurm / "bin" / "srun").write_text(SRUN.replace("#!/usr/bin/env python", f"#!{sys.executable}"))
    (slurm / "bin" / "python").write_text(RANK)
    (slurm / "bin" / "python").chmod(0o755)
    command = ["bash", str(script), "quickstart", "--name", "big", "--steps", "9"]
    with subprocess.Popen(command) as job:
        until(lambda: len(list(slurm.glob("?.waits"))) == 2, job)
        os.kill(int((slurm / "srun.pid").read_text()), signal.SIGTERM)
        assert job.wait(timeout=60) == 143
    assert (slurm / "requeued").read_text() == "42\n"
    for rank in range(2):
        started, end = (slurm / f"{rank}.said").read_text().splitlines()
        options = "quickstart --name big --steps 9 --begin-or-resume"
        assert started == f"{rank}/2 0 localhost:20042 -m adaptive_lm.train {options}"
        assert end == "signal"
    with click.Context(train) as context:
        assert train.make_context("train", options.split(), parent=context).params["begin_or_resume"]
    for code in (0, 1):
        (slurm / "code").write_text(str(code))
        assert subprocess.run(command, check=False, timeout=60).returncode == code
        assert (slurm / "requeued").read_text() == "42\n", "a run that has ended or failed is not queued again"


@pytest.mark.slow
def test_the_slurm_script_saves_on_a_signal_is_queued_again_and_goes_on(
    slurm: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T29, with an srun that starts both nodes here."""
    script = ROOT / "examples" / "slurm.sbatch"
    monkeypatch.setenv("MASTER_PORT", free_port())
    run = place / "runs" / "big"
    command = ["bash", str(script), "tiny.yaml", "--name", "big", "--set", "trainer.checkpoint_every=100000"]
    with subprocess.Popen([*command, "--steps", "100000"]) as job:
        until(lambda: len(steps_of(run)) > 2, job)
        os.kill(int((place / "srun.pid").read_text()), signal.SIGTERM)
        assert job.wait(timeout=60) == 143
    assert (place / "requeued").read_text() == "42\n"
    saved = load_checkpoint(run).step
    assert saved == max(steps_of(run))
    subprocess.run([*command, "--steps", str(saved + 3)], check=True, timeout=60)
    assert steps_of(run) == list(range(1, saved + 4))
    assert (place / "requeued").read_text() == "42\n", "a run that has come to its end is not queued again"


@pytest.mark.slow
def test_the_command_of_the_kubernetes_job_runs_with_its_environment(place: Path) -> None:
    """Every pod's command with every pod's variables, but for the name of the first pod and the length of the run."""
    service, job = yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    assert [each["valueFrom"] for each in container["env"] if each["name"] == "RANK"] == [index]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(variables["WORLD_SIZE"])
    assert variables["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == job["spec"]["template"]["metadata"]["labels"]
    assert str(service["spec"]["ports"][0]["port"]) == variables["MASTER_PORT"]
    here = {**os.environ, **variables, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    short = ["--steps", "2", "--set", "trainer.final_eval_tokens=512"]
    pods = [
        subprocess.Popen([*container["command"], *container["args"], *short], env={**here, "RANK": str(number)})
        for number in range(2)
    ]
    assert [each.wait(timeout=120) for each in pods] == [0, 0]
    assert [path.name for path in list_checkpoints(place / "runs" / "big" / "checkpoints")] == ["step-000002"]


def test_an_option_is_left_out_however_it_is_written() -> None:
    typed = ["a.yaml", "--nproc", "2", "--steps", "3", "--nproc=4", "--name", "--nprocs"]
    assert without_option(typed, "--nproc") == ["a.yaml", "--steps", "3", "--name", "--nprocs"]
