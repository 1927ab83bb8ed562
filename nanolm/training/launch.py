"""Claim the directory of the run that a command line starts, resumes or forks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nanolm.compose import ComposedCommand
from nanolm.errors import explain_os_error
from nanolm.runs.directory import RunDirectory, display_path
from nanolm.training.destination import choose_directory
from nanolm.training.distributed.ranks import Ranks, process_group
from nanolm.training.starting_point import StartingPoint, starting_point


@contextlib.contextmanager
def claimed(command: ComposedCommand) -> Iterator[tuple[RunDirectory, StartingPoint, Ranks]]:
    """Choose and lock the directory of a run, and decide how it starts; under torchrun, on all ranks together.

    Raises:
        NanolmError: the directory cannot be used, or the settings are inconsistent.
    """
    with process_group(command.config.trainer) as ranks:
        try:
            with contextlib.ExitStack() as stack:
                directory = ranks.run_on_main(lambda: choose_directory(command))
                run = RunDirectory(display_path(directory))
                ranks.run_on_main(lambda: stack.enter_context(run.claim()))
                yield run, ranks.run_on_main(lambda: starting_point(run, command)), ranks
        except OSError as error:
            # The process group is destroyed in order only after errors of nanolm.
            raise explain_os_error(error) from error


def nothing_to_do(run: RunDirectory, start: StartingPoint) -> str:
    """Return the message about a run that is complete."""
    return f"nothing to do: {run.path} is completed at step {start.completed_step}"
