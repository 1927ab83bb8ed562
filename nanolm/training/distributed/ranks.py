"""The process group of a distributed run, as seen from one of its ranks.

torchrun starts the processes and numbers them from 0. Rank 0 writes all files; every rank draws its share of each
batch. A process that was started without torchrun is rank 0 of 1: it imports nothing for this and never waits.
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

# How long the other ranks wait for rank 0 to download and tokenize a text.
PREPARATION_TIMEOUT = datetime.timedelta(days=1)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Collective operations of one rank. Every rank must call the same methods in the same order.

    Attributes:
        rank: from 0 to world_size - 1.
        world_size: number of processes that train together.
        slow_group: a process group of all ranks with PREPARATION_TIMEOUT; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    slow_group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Sum over all ranks, in fp64; the same number on each."""
        return self._all_reduce(value, "SUM")

    def sum_on_device(self, value: Any) -> Any:
        """Sum a tensor over all ranks in place, where it is, and return it; a GPU is not waited for."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def max(self, value: float) -> float:
        """Maximum over all ranks."""
        return self._all_reduce(value, "MAX")

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, ordered by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def run_on_main(self, work: Callable[[], T], is_slow: bool = False) -> T:
        """Run a function on rank 0 and broadcast its result.

        Args:
            work: called on rank 0 only.
            is_slow: wait for it up to PREPARATION_TIMEOUT instead of trainer.rank_timeout.

        Raises:
            NanolmError: raised by rank 0; on every rank.
        """
        if self.world_size == 1:
            return work()
        import torch.distributed as dist

        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = work()
            except NanolmError as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.slow_group if is_slow else None)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def run_on_main_first(self, work: Callable[[], T]) -> T:
        """Run a function that caches its result in files: on rank 0 first, then on the other ranks.

        Raises:
            NanolmError: raised by any rank; on every rank.
        """
        done: list[T] = []
        self.run_on_main(lambda: done.append(work()), is_slow=True)
        return self.run_on_all(lambda: done[0] if done else work())

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Run a function on every rank, so that an error of one rank ends all of them.

        Raises:
            NanolmError: raised by any rank; on every rank.
        """
        if self.world_size == 1:
            return work()
        result: Any = None
        error = None
        try:
            result = work()
        except NanolmError as found:
            error = found
        for raised in self.gather(error):
            if raised is not None:
                raise raised
        return result

    def _all_reduce(self, value: float, operation: str) -> float:
        if self.world_size == 1:
            return value
        import torch
        import torch.distributed as dist

        reduced = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(reduced, op=getattr(dist.ReduceOp, operation))
        return reduced.item()


SINGLE_PROCESS = Ranks()


@contextlib.contextmanager
def process_group(trainer: TrainerConfig) -> Iterator[Ranks]:
    """Initialize and destroy the process group that torchrun asks for; without torchrun do nothing.

    Scalars and objects are exchanged by gloo, whose connections break at once when a process dies; gradients on a GPU
    by NCCL.

    Raises:
        RankError: another process ended, or has not answered for trainer.rank_timeout seconds.
    """
    if world_size() == 1:
        yield SINGLE_PROCESS
        return
    import torch
    import torch.distributed as dist

    if trainer.device == "cpu" or not torch.cuda.is_available():
        backend = "gloo"
    else:
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    with translate_rank_errors():
        timeout = datetime.timedelta(seconds=trainer.rank_timeout)
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        # torchrun may reuse one store across restarts, with the addresses of dead processes in it.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout)
        ranks = Ranks(rank(), world_size(), dist.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT))
        try:
            yield ranks
        except RankError:
            raise
        except (SystemExit, NanolmError) as error:
            # The frames hold references to the model.
            traceback.clear_frames(error.__traceback__)
            _destroy(ranks)
            raise
        _destroy(ranks)


def _destroy(ranks: Ranks) -> None:
    """Destroy the process group once rank 0 is done: a launcher that sees one process end stops the others."""
    import torch.distributed as dist

    ranks.run_on_main(lambda: None)
    # Sharded tensors that outlive their process group abort the process at exit.
    gc.collect()
    dist.destroy_process_group()


@contextlib.contextmanager
def translate_rank_errors(run: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Translate collective errors after a rank failure.

    Args:
        run: the run directory, once it is known.

    Raises:
        RankError: in place of the RuntimeError of a broken or silent connection.
    """
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist

        # gloo raises plain RuntimeErrors whose text has the path of its source.
        if not (dist.is_available() and (isinstance(error, dist.DistError) or "gloo" in str(error))):
            raise
        command = "the same command with resume=auto" if run is None else f"torchrun ... -m {shell.resume_command(run)}"
        raise RankError(
            f"rank {rank()} of {world_size()} lost the connection to another rank, which ended or does not answer: "
            + re.sub(r"^\[\S*\] ", "", str(error)).splitlines()[0].split(". ")[0],
            where="the cause is in the last output of the other process, above or in torchrun's logs",
            hint=f"resume from the last checkpoint: {command}; torchrun --max-restarts=N does so by itself with "
            "resume=auto; trainer.rank_timeout sets how many seconds a silent rank is waited for",
        ) from error
