"""A run that is killed again and again (kill -9), and what became of it: is it still the run that nobody disturbed?

    python benchmarks/kill_resume.py [--kills 50] [--seed 0] [--save blocking] [--json]

Two runs of one small recipe: one is left alone; the other is killed, in moments drawn at random all through the run,
and gone on with by `adaptive train --resume` each time, and twice more at the end. Then the digest of the tokens that
were trained on, all weights, the optimizer's slots, the controllers, the random generators and the best checkpoint
must be equal to the last bit. Exits with 1 if anything differs, or a kill cost a checkpoint that was complete.

A kill is aimed at a step and then at one of four moments: any, after a random time; one of the first steps; a random
call to the system while a checkpoint is written; a random deletion of an old one. Processes are forks of one that has
imported torch, or a minute would be spent on that; otherwise they do what the command line does. Needs a POSIX system.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import group
from adaptive_lm.train.loop import trainer  # training is imported here so that no fork has to
from adaptive_lm.train.run.best import read_best
from adaptive_lm.train.run.checkpoint import DamagedCheckpoint, load_checkpoint, newest_good, verify
from adaptive_lm.train.run.checkpoint_names import list_checkpoints

EVERY = 4
"""Steps between checkpoints: so few that a good part of the time goes into saves."""
WORDS = ("the", "a", "sun", "moon", "river", "stone", "rises", "falls", "turns", "sleeps", "over", "under", "night")
RECIPE = """
data: {{sources: [{text}], cache_dir: {cache}}}
tokenizer: {{kind: chars}}
model:
  context_length: 32
  dim: 32
  num_layers: 2
  num_heads: 2
  num_kv_heads: 1
  ffn: {{num_experts: 4, expert_dim: 16, experts_per_token: 1.6}}
schedule: {{kind: sgdr}}
optimizer: {{clip: percentile}}
trainer: {{steps: {steps}, max_seconds: null, batch_size: 4, micro_batches: 2, eval_every: 50, eval_tokens: 64,
  final_eval_tokens: 64, checkpoint_every: {every}, keep_checkpoints: 2, log_every: 1, threads: 1, precision: fp32,
  matmul: torch, device: cpu, tensorboard: false, save: {save}}}
"""
MOMENTS = ("any", "in a save", "in a prune", "first steps")


@dataclass(frozen=True)
class Kill:
    """One kill and what the run went on from."""

    moment: str
    step: int
    """From which on it was to come."""
    found: int | None
    """The step of the newest good checkpoint afterwards; None where there was none yet."""
    cut_saves: int
    """Folders of checkpoints that were being written."""
    cut_deletions: int
    """Folders of old checkpoints that were being deleted."""


def child(arguments: Sequence[str], prepare: Callable[[], None], log: Path) -> int:
    """Forks a process that types `adaptive ARGUMENTS`; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        with log.open("a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        prepare()
        group(list(arguments), prog_name="adaptive")
    except SystemExit as end:
        code = int(end.code or 0)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # as the parent's own exit is not to run here


def armed_at(step: int, arm: Callable[[], object]) -> None:
    """In a child: `arm` is called before the first step from `step` on."""
    take = trainer.Trainer.step
    done: list[bool] = []

    def look(self: trainer.Trainer) -> Any:
        if self.counters.step >= step and not done:
            done.append(True)
            arm()
        return take(self)

    trainer.Trainer.step = look  # type: ignore[method-assign]


def die_at_call(moment: str, number: int) -> None:
    """In a child: kill -9 at call `number` to the system that writes a checkpoint, or deletes an old one."""
    calls = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls
        if moment == "in a save":
            # reading a file says "open" too, and nothing but a save has to do with such a folder
            counts = event in ("open", "os.rename", "os.mkdir") and ".writing-step" in str(arguments[0])
        else:  # what shutil.rmtree deletes from a folder by its handle has no path
            counts = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        calls += counts
        if counts and calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_once(arguments: Sequence[str], moment: str, step: int, rng: random.Random, log: Path, span: float) -> bool:
    """Trains until it is killed; False where the run was over before."""
    reading, writing = os.pipe()
    number = rng.randint(1, 8) if moment == "in a save" else rng.randint(2, 4)

    def prepare() -> None:
        if moment.startswith("in a"):
            armed_at(step, lambda: die_at_call(moment, number))
        else:
            armed_at(step, lambda: os.write(writing, b"x"))

    process = child(arguments, prepare, log)
    os.close(writing)
    if os.read(reading, 1):
        time.sleep(rng.uniform(0, span))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit(f"adaptive {' '.join(arguments)} ended with {os.WEXITSTATUS(status)}:\n{log.read_text()}")
    return False


def whole(arguments: Sequence[str], log: Path) -> None:
    """Types a command and waits until it is done."""
    _, status = os.waitpid(child(arguments, lambda: None, log), 0)
    if not os.WIFEXITED(status) or os.WEXITSTATUS(status):
        raise SystemExit(f"adaptive {' '.join(arguments)} failed:\n{log.read_text()}")


def compare(one: Path, other: Path) -> dict[str, bool]:
    """What is equal of the newest checkpoints of two runs."""
    first, second = load_checkpoint(one), load_checkpoint(other)

    def equal(name: str) -> bool:
        before, after = getattr(first, name), getattr(second, name)
        return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)

    state = {key: first.state[key] == second.state[key] for key in ("tokens_digest", "tokens_seen", "random", "guard")}
    rest = {"best": read_best(one) == read_best(other), "step": first.step == second.step}
    weights = {"weights and controllers": equal("model_state"), "optimizer and generators": equal("optimizer_state")}
    return {**weights, **state, **rest}


def text(path: Path) -> Path:
    """Some 8,000 characters in which there is something to learn."""
    rng = random.Random(0)
    path.write_text("".join(" ".join(rng.choices(WORDS, k=8)) + ".\n" for _ in range(180)), "utf-8")
    return path


def plan(kills: int, steps: int, rng: random.Random) -> list[tuple[str, int]]:
    """(moment, step) of each kill: spread over the run, every moment in its turn, the first two at its beginning."""
    spread = sorted(rng.randint(2, steps - 4 * EVERY) for _ in range(kills - 2))
    turns = [MOMENTS[number % 3] for number in range(kills - 2)]
    return [("first steps", 0), ("first steps", 1), *zip(turns, spread, strict=True)][:kills]


def torture(kills: int, steps: int, seed: int, folder: Path) -> list[Kill]:
    """Kills a run in `folder` so many times, and trains it to its end."""
    rng, log = random.Random(seed), folder / "log.txt"
    done: list[Kill] = []
    path = folder / "runs" / "killed"
    known = 0
    began = ["train", "recipe.yaml", "--name", "killed"]
    again = [*began[:1], "--resume", "--name", "killed"]
    arguments = began
    for moment, step in plan(kills, steps, rng):
        if not kill_once(arguments, moment, step, rng, log, span=0.15 if moment == "any" else 0.05):
            raise SystemExit(f"the run was over before kill {len(done) + 1}; give fewer --kills or more --steps")
        cut_saves = len(list((path / "checkpoints").glob(".writing-step*")))
        cut_deletions = sum(not is_whole(each) for each in list_checkpoints(path / "checkpoints"))
        found = newest_good(path, complain)
        at = None if found is None else found.step
        if (at or 0) < known:
            raise SystemExit(f"a kill cost the checkpoint of step {known}; the newest good one is {at}")
        known = at or 0
        done.append(Kill(moment, step, at, cut_saves, cut_deletions))
        arguments = again if found else [*began, "--overwrite"]
    whole([*again, "--stop-at", str(known + (steps - known) // 2)], log)
    whole(again, log)
    return done


def is_whole(checkpoint: Path) -> bool:
    try:
        verify(checkpoint, digests=False)
    except DamagedCheckpoint:
        return False
    return True


def complain(words: str) -> None:
    """A kill may cut a save, but never damage what was complete."""
    raise SystemExit(f"a kill damaged a checkpoint: {words}")


def show(done: Sequence[Kill], equal: dict[str, bool], digest: str, seconds: float) -> None:
    print("kill  moment       from step  cut saves  cut deletions  resumed from")
    for number, kill in enumerate(done, 1):
        found = "the beginning" if kill.found is None else f"step {kill.found}"
        print(f"{number:>4}  {kill.moment:<12} {kill.step:>9}  {kill.cut_saves:>9}  {kill.cut_deletions:>13}  {found}")
    for name, same in equal.items():
        print(f"{name:<26} {'equal' if same else 'DIFFERENT'}")
    print(f"tokens_digest {digest}")
    saves, deletions = sum(kill.cut_saves for kill in done), sum(kill.cut_deletions for kill in done)
    print(f"{len(done)} kills, {saves} saves and {deletions} deletions cut, {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, help="of the run; by default eight for each kill")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--save", choices=["background", "blocking"], default="background")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.kills < 3:
        parser.error("--kills: expected 3 or more, one for each moment")
    steps = options.steps or 8 * options.kills + 8 * EVERY
    torch.set_num_threads(1)  # threads do not survive a fork
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        made = RECIPE.format(
            text=text(folder / "text.txt"), cache=folder / "cache", steps=steps, every=EVERY, save=options.save
        )
        (folder / "recipe.yaml").write_text(made)
        whole(["train", "recipe.yaml", "--name", "whole"], folder / "log.txt")
        done = torture(options.kills, steps, options.seed, folder)
        equal = compare(Path("runs/whole"), Path("runs/killed"))
        digest = load_checkpoint("runs/killed").state["tokens_digest"]
        os.chdir("/")
    if options.json:
        print(json.dumps({"kills": [asdict(kill) for kill in done], "equal": equal, "tokens_digest": digest}))
    else:
        show(done, equal, digest, time.monotonic() - began)
    sys.exit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    main()
