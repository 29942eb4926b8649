"""Two replicas on a local Ray: answers, streams, and one killed under load (S43). Skipped without the extra [ray]."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from click.testing import CliRunner
from support.graphs.tiny_graph import write_model

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import group
from adaptive_lm.serve.replicas.amount import Replicas, parse_replicas

ROOT = Path(__file__).parents[3]
BODY = {"prompt": "How do", "max_tokens": 30, "seed": 3, "logit_bias": {"256": -100}}
PROGRAM = """
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from adaptive_lm.serve.replicas.amount import Replicas
from adaptive_lm.serve.replicas.run import run
from adaptive_lm.serve.settings import Settings
settings = Settings(models=(sys.argv[1],), port=int(sys.argv[2]), device="cpu", threads=1, shutdown_timeout=5)
sys.exit(run(settings, Replicas(least=2, most=2, cpus=0.5)))
"""


@pytest.mark.parametrize(("text", "numbers"), [("2", (2, 2)), ("2:10", (2, 10))])
def test_the_number_of_replicas_is_one_number_or_two(text: str, numbers: tuple[int, int]) -> None:
    assert parse_replicas(text) == numbers


@pytest.mark.parametrize("text", ["", "two", ":2", "1:2:3"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="type: --replicas 2:10"):
        parse_replicas(text)


@pytest.mark.parametrize(("least", "most"), [(0, 1), (3, 2)])
def test_a_range_that_is_empty_is_refused(least: int, most: int) -> None:
    with pytest.raises(UserError, match="type: --replicas 2:10"):
        Replicas(least=least, most=most)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    pytest.importorskip("ray.serve", reason="the extra [ray] is not installed")
    folder = tmp_path_factory.mktemp("replicas")
    model = write_model(folder / "demo" / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(model), str(port)],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        end = time.monotonic() + 90
        while "serving at" not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / "log").read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def replicas_of(process: psutil.Process) -> set[int]:
    """Return the process ids of the replicas that Ray began for this server."""
    pids = set()
    for child in process.children(recursive=True):
        try:
            if "ServeReplica" in " ".join(child.cmdline()):
                pids.add(child.pid)
        except psutil.Error:
            continue
    return pids


@pytest.mark.slow
def test_a_stream_passes_through_token_by_token(address: tuple[str, psutil.Process]) -> None:
    url, _ = address
    with (
        httpx.Client(timeout=30) as client,
        client.stream("POST", f"{url}/v1/completions", json=BODY | {"stream": True}) as answer,
    ):
        parts = [part for part in answer.iter_raw() if part]
    lines = [line for line in b"".join(parts).decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert len(parts) > 2, "it came in one piece"
    text = "".join(choice["text"] for line in lines[:-1] for choice in json.loads(line[6:]).get("choices", ()))
    assert text == httpx.post(f"{url}/v1/completions", json=BODY, timeout=30).json()["choices"][0]["text"]


@pytest.mark.slow
def test_a_replica_killed_under_load_loses_no_request_that_a_client_retries(
    address: tuple[str, psutil.Process],
) -> None:
    url, process = address
    before = replicas_of(process)
    assert len(before) == 2
    expected = httpx.post(f"{url}/v1/completions", json=BODY, timeout=30).json()["choices"][0]["text"]

    def one(number: int) -> tuple[str, int]:
        for attempt in range(40):
            try:
                answer = httpx.post(f"{url}/v1/completions", json=BODY, timeout=30)
                if answer.status_code == 200:
                    return answer.json()["choices"][0]["text"], attempt
            except httpx.HTTPError:
                pass
            time.sleep(0.25)
        raise AssertionError(f"request {number} was lost")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = [pool.submit(one, number) for number in range(60)]
        concurrent.futures.wait(results[:10])
        os.kill(min(before), signal.SIGKILL)
        texts = [result.result() for result in results]
    assert {text for text, _ in texts} == {expected}
    end = time.monotonic() + 60
    while len(replicas_of(process) - before) < 1:  # Ray puts another in its place
        assert time.monotonic() < end
        time.sleep(0.2)


def test_replicas_without_ray_are_refused() -> None:
    result = CliRunner().invoke(group, ["serve", "--replicas", "2"])
    assert result.exit_code == 2
    assert "found --replicas 2 without --ray, expected both; add --ray" in result.output


def test_the_manifest_of_kuberay_gives_settings_that_exist(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="the extra [ray] is not installed")
    from adaptive_lm.serve.commands.kuberay import application

    manifest = yaml.safe_load((ROOT / "deploy/kubernetes/rayservice.yaml").read_text("utf-8"))
    (entry,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    assert entry["import_path"] == f"{application.__module__}:{application.__name__}"
    keys = tmp_path / "keys"
    keys.write_text("alice a-key-for-tests\n")
    application(entry["args"] | {"api_key_file": str(keys)})
    with pytest.raises(UserError, match="found the setting 'ports', expected cpus, gpus, replicas, api_key_file or "):
        application({"ports": 1})
