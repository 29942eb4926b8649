"""Check that a run which is killed again and again (kill -9) and resumed equals an undisturbed run.

    python benchmarks/kill_resume.py [--kills 50] [--seed 0] [--save blocking] [--json]

Two runs of one small recipe: one is undisturbed. The other is killed at random moments throughout the run, continued by
`adaptive train --resume` each time, and stopped and resumed once more at the end. Then the digest of the tokens trained
on, all weights, the optimizer's slots, the controllers, the random generators and the best checkpoint must be equal to
the last bit. The exit code is 1 if anything differs, or if a kill lost a complete checkpoint.

A kill waits for a step and then for one of four moments: any, after a random time; one of the first steps; a random
system call while a checkpoint is written; a random deletion of an old checkpoint. The processes are forks of one that
has imported torch, which saves a minute; otherwise they do what the command line does. Needs a POSIX system.
"""

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
from adaptive_lm.train.loop import trainer  # noqa: F401 - imported here so that no fork has to import training
from adaptive_lm.train.loop.lengths import Shape
from adaptive_lm.train.loop.update import Update
from adaptive_lm.train.run.checkpoints.best import read_best
from adaptive_lm.train.run.checkpoints.checkpoint import DamagedCheckpoint, load_checkpoint, newest_good, verify
from adaptive_lm.train.run.checkpoints.names import list_checkpoints

EVERY = 4
"""Steps between checkpoints: few, so that much of the time is spent in saves."""
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
    """One kill, and the checkpoint that the run continued from."""

    moment: str
    """One of MOMENTS."""
    step: int
    """Step from which on the kill was due."""
    resumed_from: int | None
    """Step of the newest undamaged checkpoint after the kill; None where there was none yet."""
    cut_saves: int
    """Number of checkpoints that were being written."""
    cut_deletions: int
    """Number of old checkpoints that were being deleted."""


def child(arguments: Sequence[str], prepare: Callable[[], None], log: Path) -> int:
    """Fork a process that runs `adaptive ARGUMENTS`; return its id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
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
        os._exit(code)  # without the exit handlers of the parent


def armed_at(step: int, arm: Callable[[], object]) -> None:
    """Call `arm` before the first training step from `step` on; for a child process."""
    original = Update.step
    done: list[bool] = []

    def armed_step(self: Update, shape: Shape) -> Any:
        if self.counters.step >= step and not done:
            done.append(True)
            arm()
        return original(self, shape)

    Update.step = armed_step  # type: ignore[method-assign]


def die_at_call(moment: str, number: int) -> None:
    """Kill this process at system call `number` that writes a checkpoint or deletes one; for a child process."""
    calls = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls
        if moment == "in a save":
            # reading a file is an "open" too, but only a save opens files in such a folder
            counts = event in ("open", "os.rename", "os.mkdir") and ".writing-step" in str(arguments[0])
        else:  # shutil.rmtree deletes by file descriptor, without a path
            counts = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        calls += counts
        if counts and calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_once(arguments: Sequence[str], moment: str, step: int, rng: random.Random, log: Path, span: float) -> bool:
    """Train until the process is killed; return False if the run ended before."""
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
    """Run a command and wait until it is done."""
    _, status = os.waitpid(child(arguments, lambda: None, log), 0)
    if not os.WIFEXITED(status) or os.WEXITSTATUS(status):
        raise SystemExit(f"adaptive {' '.join(arguments)} failed:\n{log.read_text()}")


def compare(one: Path, other: Path) -> dict[str, bool]:
    """Compare the newest checkpoints of two runs; return which parts are equal."""
    first, second = load_checkpoint(one), load_checkpoint(other)

    def equal(name: str) -> bool:
        before, after = getattr(first, name), getattr(second, name)
        return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)

    state = {key: first.state[key] == second.state[key] for key in ("tokens_digest", "tokens_seen", "random", "guard")}
    rest = {"best": read_best(one) == read_best(other), "step": first.step == second.step}
    weights = {"weights and controllers": equal("model_state"), "optimizer and generators": equal("optimizer_state")}
    return {**weights, **state, **rest}


def text(path: Path) -> Path:
    """Write about 8,000 characters that a model can learn from."""
    rng = random.Random(0)
    path.write_text("".join(" ".join(rng.choices(WORDS, k=8)) + ".\n" for _ in range(180)), "utf-8")
    return path


def plan(kills: int, steps: int, rng: random.Random) -> list[tuple[str, int]]:
    """Return moment and step of each kill: the first two at the start, the others spread over the run, in turn."""
    spread = sorted(rng.randint(2, steps - 4 * EVERY) for _ in range(kills - 2))
    turns = [MOMENTS[number % 3] for number in range(kills - 2)]
    return [("first steps", 0), ("first steps", 1), *zip(turns, spread, strict=True)][:kills]


def torture(kills: int, steps: int, seed: int, folder: Path) -> list[Kill]:
    """Kill a run in `folder` `kills` times, and train it to its end."""
    rng, log = random.Random(seed), folder / "log.txt"
    done: list[Kill] = []
    path = folder / "runs" / "killed"
    newest = 0
    began = ["train", "recipe.yaml", "--name", "killed"]
    again = [*began[:1], "--resume", "--name", "killed"]
    arguments = began
    for moment, step in plan(kills, steps, rng):
        if not kill_once(arguments, moment, step, rng, log, span=0.15 if moment == "any" else 0.05):
            raise SystemExit(f"the run was over before kill {len(done) + 1}; give fewer --kills or more --steps")
        cut_saves = len(list((path / "checkpoints").glob(".writing-step*")))
        cut_deletions = sum(not is_whole(each) for each in list_checkpoints(path / "checkpoints"))
        checkpoint = newest_good(path, complain)
        at = None if checkpoint is None else checkpoint.step
        if (at or 0) < newest:
            raise SystemExit(f"a kill lost the checkpoint of step {newest}; the newest undamaged one is {at}")
        newest = at or 0
        done.append(Kill(moment, step, at, cut_saves, cut_deletions))
        arguments = again if checkpoint else [*began, "--overwrite"]
    whole([*again, "--stop-at", str(newest + (steps - newest) // 2)], log)
    whole(again, log)
    return done


def is_whole(checkpoint: Path) -> bool:
    """Return whether all files of a checkpoint are there."""
    try:
        verify(checkpoint, digests=False)
    except DamagedCheckpoint:
        return False
    return True


def complain(message: str) -> None:
    """Stop: a kill may interrupt a save, but must never damage a complete checkpoint."""
    raise SystemExit(f"a kill damaged a checkpoint: {message}")


def show(done: Sequence[Kill], equal: dict[str, bool], digest: str, seconds: float) -> None:
    """Print the kills, and what is equal."""
    print("kill  moment       from step  cut saves  cut deletions  resumed from")
    for number, kill in enumerate(done, 1):
        start = "the beginning" if kill.resumed_from is None else f"step {kill.resumed_from}"
        print(f"{number:>4}  {kill.moment:<12} {kill.step:>9}  {kill.cut_saves:>9}  {kill.cut_deletions:>13}  {start}")
    for name, same in equal.items():
        print(f"{name:<26} {'equal' if same else 'DIFFERENT'}")
    print(f"tokens_digest {digest}")
    saves, deletions = sum(kill.cut_saves for kill in done), sum(kill.cut_deletions for kill in done)
    print(f"{len(done)} kills, {saves} saves and {deletions} deletions cut, {seconds:.0f} s")


def main() -> None:
    """Compare a run that is killed and resumed with an undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of kills (default: 50)")
    parser.add_argument("--steps", type=int, help="training steps (default: 8 per kill and 32 more)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument(
        "--save", choices=["background", "blocking"], default="background", help="trainer.save (default: background)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    if options.kills < 3:
        parser.error("--kills: expected 3 or more, one for each moment")
    steps = options.steps or 8 * options.kills + 8 * EVERY
    torch.set_num_threads(1)  # threads do not survive a fork
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        recipe = RECIPE.format(
            text=text(folder / "text.txt"), cache=folder / "cache", steps=steps, every=EVERY, save=options.save
        )
        (folder / "recipe.yaml").write_text(recipe)
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
