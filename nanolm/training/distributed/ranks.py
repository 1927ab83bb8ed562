"""The processes that train one model together, as each of them sees them.

torchrun starts them and numbers them from 0. Rank 0 writes all that is written; every rank draws its share of each
batch. A process without a launcher is alone: it imports nothing for this, and waits for nobody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import os
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from nanolm import shell
from nanolm.config.trainer import TrainerConfig
from nanolm.errors import NanolmError, RankError
from nanolm.torchrun import local_rank, rank, world_size

T = TypeVar("T")

# While rank 0 fetches and tokenizes a text the others wait longer than for anything else.
PREPARATION = datetime.timedelta(days=1)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """One process among `n`. Every rank must call the same methods in the same order.

    Attributes:
        rank: from 0 to n - 1.
        n: processes that train together.
        patient: the group of all of them, for what may take as long as PREPARATION.
    """

    rank: int = 0
    n: int = 1
    patient: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Of all ranks, in fp64: the same number on each."""
        return self._reduced(value, "SUM")

    def largest(self, value: float) -> float:
        """Of all ranks."""
        return self._reduced(value, "MAX")

    def gathered(self, value: T) -> list[T]:
        """That of every rank, by rank, on each of them."""
        if self.n == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.n
        dist.all_gather_object(values, value)
        return values

    def from_main(self, work: Callable[[], T], patiently: bool = False) -> T:
        """What rank 0 gets from some work, on every rank; the others wait.

        Args:
            patiently: whether they wait for as long as PREPARATION.

        Raises:
            NanolmError: rank 0's, on every rank.
        """
        if self.n == 1:
            return work()
        import torch.distributed as dist

        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = work()
            except NanolmError as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.patient if patiently else None)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def main_first(self, work: Callable[[], T]) -> T:
        """Rank 0 does some work that leaves files, and then every other rank does it, who finds them.

        Raises:
            NanolmError: that of any rank, on every rank.
        """
        done: list[T] = []
        self.from_main(lambda: done.append(work()), patiently=True)
        return self.together(lambda: done[0] if done else work())

    def together(self, work: Callable[[], T]) -> T:
        """Every rank does some work.

        Raises:
            NanolmError: that of any rank, on every rank.
        """
        if self.n == 1:
            return work()
        result: Any = None
        error = None
        try:
            result = work()
        except NanolmError as found:
            error = found
        for raised in self.gathered(error):
            if raised is not None:
                raise raised
        return result

    def _reduced(self, value: float, operation: str) -> float:
        if self.n == 1:
            return value
        import torch
        import torch.distributed as dist

        reduced = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(reduced, op=getattr(dist.ReduceOp, operation))
        return reduced.item()


ALONE = Ranks()


@contextlib.contextmanager
def started(trainer: TrainerConfig) -> Iterator[Ranks]:
    """Brings the processes that torchrun started together, and parts them at the end; nothing without torchrun.

    Numbers and objects go between the ranks by gloo, whose connections break at once when a process dies; gradients of
    a GPU by NCCL.

    Raises:
        RankError: another process ended, or has not answered for trainer.rank_timeout seconds.
    """
    if world_size() == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if trainer.device == "cpu" or not torch.cuda.is_available():
        backend = "gloo"
    else:
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    with explained():
        patience = datetime.timedelta(seconds=trainer.rank_timeout)
        store, _, _ = next(dist.rendezvous("env://", timeout=patience))
        # torchrun may keep one store over its restarts, and with it the addresses of processes that are dead.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=patience)
        ranks = Ranks(rank(), world_size(), dist.new_group(backend="gloo", timeout=PREPARATION))
        try:
            yield ranks
        except (SystemExit, NanolmError) as error:
            if not isinstance(error, RankError):
                _part(ranks, error)
            raise
        _part(ranks)


def _part(ranks: Ranks, error: BaseException | None = None) -> None:
    """Waits for rank 0 to have written everything: a launcher that sees one process end stops the others."""
    import torch.distributed as dist

    if error is not None:
        # They hold the model.
        traceback.clear_frames(error.__traceback__)
    ranks.from_main(lambda: None)
    # Sharded tensors that outlive their group abort the process at its exit.
    gc.collect()
    dist.destroy_process_group()


@contextlib.contextmanager
def explained(run: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Turns what torch says when another rank has gone into an error that says what to do.

    Args:
        run: the run directory, when it is known.

    Raises:
        RankError: in place of the RuntimeError of a broken or silent connection.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_lost_rank(error):
            raise
        line = "the same line with resume=auto" if run is None else f"torchrun ... -m {shell.resume_command(run)}"
        raise RankError(
            f"rank {rank()} of {world_size()} lost another one, which ended or no longer answers: "
            + re.sub(r"^\[\S*\] ", "", str(error)).splitlines()[0].split(". ")[0],
            where="what the other process said last, above or in torchrun's logs, is the cause",
            hint=f"go on from the last checkpoint: {line}; torchrun --max-restarts=N does so by itself with "
            "resume=auto; trainer.rank_timeout is how long a silent one is waited for, in seconds",
        ) from error


def _is_of_a_lost_rank(error: RuntimeError) -> bool:
    import torch.distributed as dist

    # gloo's are plain RuntimeErrors; the path of its source is in their text.
    return dist.is_available() and (isinstance(error, dist.DistError) or "gloo" in str(error))
