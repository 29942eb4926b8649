"""A thousand mixed requests, of which a tenth vanish at a random moment: nothing lost, and memory that stays flat.

    python benchmarks/serve_soak.py --model runs/demo/model

Sizes, dials, sampling, reading speeds and moments of leaving are drawn from a seed. Every answer must be whole; those
without randomness must have the text that the same request has alone, whatever its neighbours did. Memory is compared
with that after the first part of the requests. The exit code is 1 where something is lost, different or grows.
"""

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

from adaptive_lm.runtime.format.manifest import Manifest
from serving.client import Answer, complete, get
from serving.process import Server, ours

ROOT = Path(__file__).parent.parent
AT_ONCE = 12
VANISHING = 0.1
WARM_UP = 0.3
"""Share of the requests after which memory should not grow."""
MOST_GROWTH = 0.02
DIALS: tuple[dict[str, Any], ...] = ({}, {"compute": 1.0}, {"router_top_p": 0.5}, {"router_top_p": 1.0})


class Case(NamedTuple):
    """A request, and what its client does."""

    body: dict[str, Any]
    leave_after: int | None


class Soak:
    """The requests of a soak, and what came of them."""

    def __init__(self, server: Server, manifest: Manifest, seed: int) -> None:
        self.server, self.eos = server, manifest.model.eos_id
        self.longest = manifest.model.context_length // 2
        self.calibrated = manifest.curve is not None
        self.random = random.Random(seed)
        # The library of tokenizers keeps the ids of the last 10,000 words, which takes some 9 MB: words that never come
        # again would fill it during the measurement.
        self.words = ["".join(self.random.choices("abcdefghijklmnop", k=self.random.randint(1, 9))) for _ in range(400)]
        self.problems: list[str] = []
        self.left = self.answered = self.tokens = 0

    def draw(self) -> Case:
        """Draw a request."""
        draw = self.random
        prompt = " ".join(draw.choices(self.words, k=self.longest))[: draw.randint(1, self.longest)]
        tokens = draw.randint(1, self.longest // 2)
        body = {"prompt": prompt, "max_tokens": tokens, "logit_bias": {str(self.eos): -100}}
        body |= {"temperature": draw.choice([0, 0, 0.8]), "seed": draw.randint(0, 2**31)}
        body |= draw.choice(DIALS if self.calibrated else [one for one in DIALS if "compute" not in one])
        return Case(body, draw.randint(1, tokens) if draw.random() < VANISHING else None)

    async def run(self, count: int) -> None:
        """Send `count` requests, some at a time."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(case: Case) -> None:
            async with slots:
                answer = await complete(self.server.port, case.body, case.leave_after)
                self.check(case, answer)

        await asyncio.gather(*(one(self.draw()) for _ in range(count)))

    def check(self, case: Case, answer: Answer) -> None:
        """Note what is wrong with an answer."""
        self.tokens += len(answer.times)
        if answer.status != 200 or answer.error:
            self.problems.append(f"status {answer.status}, {answer.error or 'no error'}: {json.dumps(case.body)[:200]}")
        elif case.leave_after is not None:
            self.left += 1
        elif answer.finish != "length":
            self.problems.append(f"ended with {answer.finish!r}: {json.dumps(case.body)[:200]}")
        else:
            self.answered += 1

    async def neighbours(self) -> None:
        """Compare answers among neighbours with those alone."""
        cases = [self.draw()._replace(leave_after=None) for _ in range(AT_ONCE)]
        together = await asyncio.gather(*(complete(self.server.port, case.body) for case in cases))
        for case, beside in zip(cases, together, strict=True):
            alone = await complete(self.server.port, case.body)
            if alone.text != beside.text:
                self.problems.append(f"another text among neighbours than alone: {json.dumps(case.body)[:200]}")

    async def idle(self) -> None:
        """Wait until no slot is taken."""
        begin = time.perf_counter()
        while json.loads((await get(self.server.port, "/props"))[1])["load"]["running"]:
            if time.perf_counter() - begin > 10:
                self.problems.append("slots are still taken 10 s after the last client")
                return
            await asyncio.sleep(0.01)


@click.command()
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=ROOT / "runs" / "demo" / "model",
    help="Folder of a model; by default runs/demo/model.",
)
@click.option("--requests", type=click.IntRange(10), default=1000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(model: Path, requests: int, seed: int) -> None:
    """Run the soak, and print its figures."""
    first = int(WARM_UP * requests)
    begin = time.perf_counter()
    with ours(model.resolve(), "--max-queue", str(2 * AT_ONCE)) as server:
        soak = Soak(server, Manifest.read(model, verify=False), seed)
        asyncio.run(soak.run(first))
        warm = server.memory()
        asyncio.run(soak.run(requests - first))
        asyncio.run(soak.idle())
        growth = server.memory() / warm - 1
        asyncio.run(soak.neighbours())
    if growth > MOST_GROWTH:
        soak.problems.append(f"memory grew by {100 * growth:.1f} %, expected at most {100 * MOST_GROWTH:.0f} %")
    seconds = time.perf_counter() - begin
    click.echo(
        f"{requests} requests in {seconds:.0f} s: {soak.answered} answered whole, {soak.left} left, {soak.tokens} "
        f"tokens; memory after the first {first}: {warm / 2**20:.0f} MiB, then {100 * growth:+.1f} %"
    )
    for problem in soak.problems:
        click.echo(f"problem: {problem}", err=True)
    sys.exit(1 if soak.problems else 0)


if __name__ == "__main__":
    main()
