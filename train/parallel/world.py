"""The ranks of a run: which one this is, and how they come to the same decisions."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...contract.errors import UserError
from ..system import collectives

Result = TypeVar("Result")
PATIENCE = timedelta(hours=2)
"""Time that a rank waits for another: the first prepares the text while the others wait. A rank that died is noticed
immediately, by its closed connection."""


class FailedOnAnotherRank(UserError):  # noqa: N818  # it says where the error is, which is not here
    """Another rank has failed and reported why; this one ends with the same exit code and prints nothing."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another rank has reported why")
        self.exit_code = exit_code


class World:
    """All ranks of a run. In a process alone, every method works without communication.

    A rank reads its own clock, signals and disk. What follows from them must be decided once for all ranks, or they
    wait for each other in different places. Every method but `rows` must be called by all ranks.
    """

    def __init__(self) -> None:
        self.size, self.rank = collectives.ranks(), collectives.rank()
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else 0

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and prints for all."""
        return self.rank == 0

    def broadcast_float(self, value: float) -> float:
        """Return the value of the first rank; it may be NaN."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(tensor, 0)
        return float(tensor)

    def broadcast_floats(self, values: Sequence[float]) -> list[float]:
        """Return the values of the first rank; all ranks pass equally many."""
        if self.size == 1 or not values:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, 0)
        return [float(each) for each in tensor]

    def max_over_ranks(self, value: int) -> int:
        """Return the largest value of any rank."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value])
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def broadcast_text(self, text: str) -> str:
        """Return the text of the first rank."""
        if self.size == 1:
            return text
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0).byte()
        size = int(self.broadcast_float(len(data)))
        data = data if self.is_first else torch.empty(size, dtype=torch.uint8)
        dist.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def run_together(self, do: Callable[[], Result]) -> Result:
        """Call `do` on every rank, where it may fail on some of them alone.

        Raises:
            UserError, OSError: on the lowest rank that failed, its own error; on all others `FailedOnAnotherRank`. So
                one message comes out, and no rank waits for one that has ended.
        """
        if self.size == 1:
            return do()
        failed: UserError | OSError | None = None
        try:
            result = do()
        except (UserError, OSError) as error:
            failed = error
        mine = torch.tensor([0 if failed is None else getattr(failed, "exit_code", 1)])
        codes = [torch.zeros_like(mine) for _ in range(self.size)]
        dist.all_gather(codes, mine)
        reporter = next((rank for rank, code in enumerate(codes) if code), None)
        if reporter is None:
            return result
        if failed is None or reporter != self.rank or isinstance(failed, FailedOnAnotherRank):
            raise FailedOnAnotherRank(int(codes[reporter]))
        if not self.is_first:  # what it raises is not shown; see __main__
            os.write(2, f"error: on rank {self.rank}: {failed}\n".encode())
        raise failed

    def on_rank_zero(self, do: Callable[[], Result]) -> Result | None:
        """Call `do` on the first rank alone; return None on all others. It raises as `run_together` does."""
        return self.run_together(lambda: do() if self.is_first else None)

    def rank_zero_first(self, do: Callable[[], Result]) -> Result:
        """Call `do` on the first rank of each machine, then on its others, which find what it left on the disk."""
        before = self.run_together(lambda: None if self.local_rank else do())
        return self.run_together(lambda: do() if before is None else before)

    def rows(self, whole: Tensor) -> Tensor:
        """Return this rank's rows of a batch: (B, ...) -> (B / ranks, ...).

        Raises:
            UserError: the batch does not divide among the ranks.
        """
        require_division(len(whole), len(whole), self.size)
        return whole.chunk(self.size)[self.rank] if self.size > 1 else whole


def require_division(sequences: int, part: int, ranks: int) -> None:
    """Check that a batch of `sequences`, of which `part` are computed at once, divides among the ranks.

    Raises:
        UserError: the batch does not divide.
    """
    sizes = {min(part, sequences), sequences % part}
    if any(size % ranks for size in sizes):
        at_once = f", {part} of them at once," if part < sequences else ""
        fits = -(-sequences // ranks) * ranks
        raise UserError(
            f"a step of {sequences} sequences{at_once} does not divide among {ranks} ranks; start a number of ranks "
            f"that divides it, or set trainer.batch_size (as to {fits}), micro_batches and lengths so that it does"
        )


def join() -> World:
    """Join the other ranks that torchrun, srun or Kubernetes started; without WORLD_SIZE this process is alone.

    Raises:
        UserError: the environment lacks a variable that ranks need, or they cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {' and '.join(missing)} not set; start the ranks with "
                "torchrun, with adaptive train --nproc N, or as docs/multi-node.md shows"
            )
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
            # torchelastic keeps the store of a group that it restarts (torch 2.13), with the addresses of dead ranks
            if restarted():
                store = PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        except (dist.DistError, ValueError, RuntimeError) as error:
            raise UserError(
                f"cannot meet the other ranks at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: "
                f"{str(error).splitlines()[0]}; check that it can be reached, and start all ranks with one WORLD_SIZE"
            ) from error
    return World()


def leave() -> None:
    """Leave the group of ranks that `join` entered."""
    if dist.is_available() and dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # a rank that died is no reason to end with a traceback
            dist.destroy_process_group()


def end(exit_code: int) -> NoReturn:
    """End the process of a rank that has finished, its last save included.

    `sys.exit` does not do: a thread of gloo that outlives its group sometimes aborts the interpreter on its way down
    (torch 2.13: "terminate called without an active exception", exit code -6 after all work was done).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def restarted() -> bool:
    """Return whether torchelastic restarted this group after a rank was lost."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
