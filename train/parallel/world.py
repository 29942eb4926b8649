"""The ranks of a run: which this one is, and how they come to one opinion."""

from __future__ import annotations

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
"""How long a rank waits for another: the first prepares the text while the others wait. One that died is noticed at
once, by its closed connection."""


class FailedOnAnotherRank(UserError):  # noqa: N818  # it says where the error is, which is not here
    """Another rank has failed and said why; this one ends with the same exit code and says nothing."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another rank has said why")
        self.exit_code = exit_code


class World:
    """All ranks of a run. Alone, every method does what is asked of it and no more.

    What a rank reads from a clock, a signal or a disk is its own; what follows from it must be decided once for all, or
    the ranks wait for each other in different places. Every method but `rows` must be called by all ranks.
    """

    def __init__(self) -> None:
        self.size, self.rank = collectives.ranks(), collectives.rank()
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else 0

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and speaks for all."""
        return self.rank == 0

    def broadcast_float(self, value: float) -> float:
        """What the first rank holds it to be; it may be NaN."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(told, 0)
        return float(told)

    def broadcast_floats(self, values: Sequence[float]) -> list[float]:
        """The same for several, of which every rank has as many."""
        if self.size == 1 or not values:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(told, 0)
        return [float(each) for each in told]

    def max_over_ranks(self, value: int) -> int:
        """The largest of what the ranks say."""
        if self.size == 1:
            return value
        found = torch.tensor([value])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def broadcast_text(self, text: str) -> str:
        """The text of the first rank."""
        if self.size == 1:
            return text
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0).byte()
        size = int(self.broadcast_float(len(data)))
        data = data if self.is_first else torch.empty(size, dtype=torch.uint8)
        dist.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def run_together(self, do: Callable[[], Result]) -> Result:
        """Lets every rank do something that may fail on some of them alone.

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
        speaker = next((rank for rank, code in enumerate(codes) if code), None)
        if speaker is None:
            return result
        if failed is None or speaker != self.rank or isinstance(failed, FailedOnAnotherRank):
            raise FailedOnAnotherRank(int(codes[speaker]))
        if not self.is_first:  # what it raises is not shown; see __main__
            os.write(2, f"error: on rank {self.rank}: {failed}\n".encode())
        raise failed

    def on_rank_zero(self, do: Callable[[], Result]) -> Result | None:
        """Lets the first rank alone do something; None on all others. Raises as `run_together` does."""
        return self.run_together(lambda: do() if self.is_first else None)

    def rank_zero_first(self, do: Callable[[], Result]) -> Result:
        """The first rank of each machine before its others, which find what it left on the disk."""
        before = self.run_together(lambda: None if self.local_rank else do())
        return self.run_together(lambda: do() if before is None else before)

    def rows(self, whole: Tensor) -> Tensor:
        """The rows of a batch (B, ...) that are this rank's, (B / ranks, ...).

        Raises:
            UserError: the batch does not divide.
        """
        require_division(len(whole), len(whole), self.size)
        return whole.chunk(self.size)[self.rank] if self.size > 1 else whole


def require_division(sequences: int, part: int, ranks: int) -> None:
    """Raises UserError where a batch of so many sequences, `part` of them at once, does not divide among ranks."""
    sizes = {min(part, sequences), sequences % part}
    if any(size % ranks for size in sizes):
        at_once = f", {part} of them at once," if part < sequences else ""
        fits = -(-sequences // ranks) * ranks
        raise UserError(
            f"a step of {sequences} sequences{at_once} does not divide among {ranks} ranks; start a number of ranks "
            f"that divides it, or set trainer.batch_size (as to {fits}), micro_batches and lengths so that it does"
        )


def join() -> World:
    """Meets the other ranks that torchrun, srun or Kubernetes started; alone where the environment names none.

    Raises:
        UserError: what they must be told by the environment is not there, or they cannot be reached.
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
            # torchelastic keeps the store of a group that it starts again (torch 2.13), with the addresses of the dead
            if restarted():
                store = PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        except (dist.DistError, ValueError, RuntimeError) as error:
            raise UserError(
                f"cannot meet the other ranks at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: "
                f"{str(error).splitlines()[0]}; see that it can be reached, and start all ranks with one WORLD_SIZE"
            ) from error
    return World()


def leave() -> None:
    """The reverse of `join`."""
    if dist.is_available() and dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # a rank that died is no reason to end with a traceback
            dist.destroy_process_group()


def end(exit_code: int) -> NoReturn:
    """Ends a rank whose session is over; a session waits for its last save itself.

    Not by `sys.exit`: a thread of gloo that outlives its group aborts an interpreter that is taken down, now and then
    (torch 2.13: "terminate called without an active exception", exit code -6 after all was done).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def restarted() -> bool:
    """Whether torchelastic started this group again after a rank was lost."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
