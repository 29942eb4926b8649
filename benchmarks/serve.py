"""The server under load: throughput, overhead, pauses, clients that leave, and the dial, beside llama.cpp's server.

    python benchmarks/serve.py --model runs/demo/model

Everything runs on this machine over loopback, the client beside the server on the same cores. Servers that are compared
are open at the same time and take turns, so each ratio is one of the same minutes; an idle server waits without
computing. moe-57m has random weights (models/random_weights.py), in int8 with two of eight experts; the model of
`--model` must be calibrated for the part `dial`. The server of llama-cpp-python is left out where it is not installed.
"""

import asyncio
import importlib.util
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import click
import numpy as np

from adaptive_lm.contract.file_names import MANIFEST
from adaptive_lm.runtime.execution.session import usable_cores
from adaptive_lm.runtime.format.manifest import Manifest
from adaptive_lm.runtime.measuring.machine import cpu_name
from models.files import Files
from serving.client import Answer, complete, get
from serving.peer_file import server_file
from serving.process import Server, llama_cpp, ours
from serving.report import markdown

ROOT = Path(__file__).parent.parent
PARTS = ("ready", "throughput", "overhead", "pauses", "leaving", "dial")
STREAMS = (1, 4, 8)
PROMPT, NEW = 32, 64
"""Tokens of a prompt and of its answer; the tokenizer has a token per byte."""
MOST_LOAD, BUSY = 2.0, 0.8
"""Load of the parts `dial` and `pauses`, as a share of what the server computes with full slots."""
QUEUE = 16
"""Requests that may wait, in the part `dial`."""
PATIENCE = 2.0
"""An answer is in time within this many times what it takes with all slots taken: it waits no longer than it runs."""
LEAST_DIAL = 0.3
Result = dict[str, Any]


class Bench:
    """The models and settings of a run."""

    def __init__(self, work: Path, model: Path, rounds: int) -> None:
        self.files, self.model, self.rounds = Files(work, "moe-57m"), model, rounds
        self.random = random.Random(0)
        self.threads = usable_cores()
        self.capacity: float | None = None
        """Tokens per second with full slots, once it is measured."""

    def exported(self) -> Path:
        """Write moe-57m in int8."""
        folder = self.files.export("int8")
        if not (folder / MANIFEST).exists():
            self.files.write_exports("int8")
        return folder

    def body(self, eos: int, tokens: int = NEW, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return a request whose prompt no other request shares, and that gives exactly `tokens` tokens."""
        prompt = "".join(self.random.choices("abcdefghijklmnopqrstuvwxyz ", k=PROMPT))
        return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "logit_bias": {str(eos): -100}} | dict(
            more or {}
        )

    def ready(self) -> Result:
        """Time the start of a server on the calibrated model."""
        seconds = []
        for _ in range(max(3, self.rounds // 2)):
            with ours(self.model) as server:
                seconds.append(server.ready_seconds)
        return {"model": self.model.parent.name, "seconds": seconds}

    def throughput(self) -> Result:
        """Count tokens per second at several streams, ours and llama.cpp's in turn."""
        eos = Manifest.read(self.exported(), verify=False).model.eos_id
        rates: dict[str, dict[int, list[float]]] = {}
        with self.servers() as servers:
            for number in range(self.rounds + 1):  # the first one warms up
                for streams in STREAMS:
                    for name, server in servers.items():
                        rate = asyncio.run(self.rate(server, streams, eos))
                        if number:
                            rates.setdefault(name, {}).setdefault(streams, []).append(rate)
        self.capacity = median(rates["ours"][STREAMS[-1]])
        return {"rates": rates}

    @contextmanager
    def servers(self) -> Iterator[dict[str, Server]]:
        """Run every server that is compared."""
        with ExitStack() as stack:
            running = {"ours": stack.enter_context(ours(self.exported(), threads=self.threads))}
            if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("fastapi"):
                running["llama.cpp"] = stack.enter_context(llama_cpp(server_file(self.files), self.threads))
            else:
                click.echo("the server of llama-cpp-python is not installed, so it is left out; to include it, type: "
                           "pip install 'llama-cpp-python[server]'", err=True)  # fmt: skip
            yield running

    async def rate(self, server: Server, streams: int, eos: int) -> float:
        """Return tokens per second of requests that begin at the same time."""
        begin = time.perf_counter()
        answers = await asyncio.gather(*(complete(server.port, self.body(eos)) for _ in range(streams)))
        seconds = time.perf_counter() - begin
        for answer in answers:
            require(answer, NEW)
        return streams * NEW / seconds

    def overhead(self) -> Result:
        """Compare the time of a token from the server with that of `adaptive generate`, in turn."""
        model = self.exported()
        ratios, texts = [], []
        with ours(model, threads=self.threads) as server:
            for number in range(self.rounds + 1):
                body = self.body(0)
                del body["logit_bias"]  # `generate` has none, and both must give the same text
                answer = asyncio.run(complete(server.port, body))
                alone = self.generate(model, body["prompt"])
                texts.append(answer.text == alone["text"])
                own = [token["seconds"] for token in alone["tokens"][1:]]
                if number and len(own) > 8:
                    ratios.append(median(answer.gaps) / median(own))
        return {"ratios": ratios, "same_text": all(texts)}

    def generate(self, model: Path, prompt: str) -> Result:
        """Run `adaptive generate --json` as the server computes: greedily, without guessing ahead."""
        command = [sys.executable, "-m", "adaptive_lm.serve", "generate", "--json", "--model", str(model), "--raw",
                   "--temperature", "0", "--max-new-tokens", str(NEW), "--speculate", "off",
                   "--threads", str(self.threads), prompt]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result: Result = json.loads(done.stdout)
        return result

    def pauses(self) -> Result:
        """Measure the time between tokens while requests come at random moments."""
        model = self.exported()
        eos = Manifest.read(model, verify=False).model.eos_id
        with ours(model, threads=self.threads) as server:
            if self.capacity is None:
                self.capacity = median(asyncio.run(self.rate(server, STREAMS[-1], eos)) for _ in range(3))
            per_second = BUSY * self.capacity / NEW
            answers = asyncio.run(self.arrivals(server, per_second, 12 * self.rounds, lambda: self.body(eos)))
        for answer in answers:
            require(answer, NEW)
        gaps = [1000 * gap for answer in answers for gap in answer.gaps]
        p50, p99 = np.percentile(gaps, [50, 99])
        first = [1000 * (answer.times[0] - answer.sent) for answer in answers]
        return {"requests": len(answers), "p50_ms": p50, "p99_ms": p99, "ratio": p99 / p50,
                "first_token_ms": {"p50": median(first), "p99": float(np.percentile(first, 99))}}  # fmt: skip

    async def arrivals(
        self, server: Server, per_second: float, count: int, body: Callable[[], dict[str, Any]]
    ) -> list[Answer]:
        """Send requests at the moments of a Poisson process."""
        tasks = []
        due = time.perf_counter()
        for _ in range(count):
            due += self.random.expovariate(per_second)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(complete(server.port, body())))
        return list(await asyncio.gather(*tasks))

    def leaving(self) -> Result:
        """Time how long a slot stays taken after its client has left, beside the time of a token."""
        model = self.exported()
        eos = Manifest.read(model, verify=False).model.eos_id
        freed, tokens = [], []
        with ours(model, threads=self.threads) as server:
            for number in range(4 * self.rounds):
                took, token = asyncio.run(self.leave(server, self.body(eos, 1024), number % 17))
                freed.append(1000 * took)
                tokens.append(1000 * token)
        return {"freed_ms": freed, "token_ms": median(one for one in tokens if one > 0)}

    async def leave(self, server: Server, body: dict[str, Any], after: int) -> tuple[float, float]:
        """Leave after some tokens; return the seconds until the slot is free, and those of a token."""
        answer = await complete(server.port, body, after + 1)
        begin = time.perf_counter()
        while json.loads((await get(server.port, "/props"))[1])["load"]["running"]:
            if time.perf_counter() - begin > 10:
                raise RuntimeError("a slot is still taken 10 s after its client has left")
        return time.perf_counter() - begin, median(answer.gaps or [0.0])

    def dial(self) -> Result:
        """At twice the load that the full model holds: the dial fixed, and the dial lowered by load."""
        manifest = Manifest.read(self.model, verify=False)
        if manifest.curve is None:
            raise click.ClickException(f"{self.model} has no dial; type: adaptive calibrate --model {self.model}")
        shares = [point.executed_share for point in manifest.curve.points]
        losses = [point.loss for point in manifest.curve.points]
        options = ("--max-queue", str(QUEUE), "--max-batch", str(STREAMS[-1]))
        result: Result = {"model": self.model.parent.name, "rows": {}}
        eos = manifest.model.eos_id
        with (
            ours(self.model, *options) as fixed,
            ours(self.model, *options, "--auto-compute", str(LEAST_DIAL)) as auto,
        ):
            capacity = median(asyncio.run(self.rate(fixed, STREAMS[-1], eos)) for _ in range(3))
            limit = PATIENCE * STREAMS[-1] * NEW / capacity
            result |= {"limit_ms": 1000 * limit, "capacity": capacity}
            for name, server, compute in (("fixed", fixed, 1.0), ("auto", auto, "auto")) * 2:
                asked = 40 * self.rounds
                # Without it the server sends no usage, and so no share of the FLOPs, in a stream.
                more = {"compute": compute, "stream_options": {"include_usage": True}}
                answers = asyncio.run(
                    self.arrivals(server, MOST_LOAD * capacity / NEW, asked, partial(self.body, eos, more=more))
                )
                done = [one for one in answers if one.status == 200]
                used = [one.usage["compute"]["share"] for one in done]
                row = {
                    "asked": asked,
                    "refused": sum(one.status == 429 for one in answers) / asked,
                    "in_time": sum(one.seconds <= limit for one in done) / asked,
                    "share": mean(used) if used else None,
                    "loss": float(np.mean(np.interp(used, shares, losses))) if used else None,
                }
                result["rows"].setdefault(name, []).append(row)
        return result


def require(answer: Answer, tokens: int) -> None:
    """Raise RuntimeError unless a request was answered whole."""
    if answer.status != 200 or answer.error or answer.finish != "length" or not answer.times:
        raise RuntimeError(f"expected {tokens} tokens, found status {answer.status}, the end {answer.finish!r}, and "
                           f"{answer.error or 'no error'}")  # fmt: skip


@click.command()
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path),
              default=ROOT / "runs" / "demo" / "model",
              help="Folder of a calibrated model; by default runs/demo/model, that of `make demo`.")  # fmt: skip
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Only this part; may be repeated.")
@click.option("--rounds", type=click.IntRange(2), default=6, show_default=True, help="Rounds of each comparison.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "runs" / "bench-decode",
              help="Folder for models; by default that of the decode benchmark.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write all figures.")
def main(model: Path, only: tuple[str, ...], rounds: int, work: Path, json_file: Path | None) -> None:
    """Measure the server, and print the tables."""
    bench = Bench(work.resolve(), model.resolve(), rounds)
    report: Result = {
        "machine": {"cpu": cpu_name(), "cores": usable_cores(), "date": datetime.now(UTC).date().isoformat()}
    }
    for part in PARTS:
        if part in (only or PARTS):
            click.echo(f"{datetime.now():%H:%M} {part}", err=True)
            report[part] = getattr(bench, part)()
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1), "utf-8")
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
