"""The files of a run that are written before and around its loop, and the errors of a disk that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from nanolm import shell
from nanolm.config.budget import as_asked
from nanolm.config.yaml_io import save_yaml
from nanolm.data import tokenizers
from nanolm.errors import NanolmError, write_failure
from nanolm.files import write_durably
from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log
from nanolm.runs.summary import Summary, update_summary, write_summary
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.setup import Setup


def write_first_files(setup: Setup, summary: Summary) -> list[str]:
    """Write the first files of a run, quarantine damaged checkpoints, and describe the damage and new name of each."""
    run, config = setup.run, setup.config
    with translate_disk_errors(run):
        write_durably(run.tokenizer, tokenizers.to_text(config.tokenizer.name, setup.tokenizer).encode())
        write_summary(run.summary, summary)
        if setup.base is not None:
            setup.base.write(run.base)
        # Written last: config.yaml marks a directory as a run.
        write_durably(run.config, save_yaml(as_asked(config)).encode())
        renamed = checkpoint.quarantine(run.checkpoints, setup.state.step) if setup.damaged else []
    return [f"{error.found}; kept as {path.name}" for error, path in zip(setup.damaged, renamed, strict=True)]


def open_log(run: RunDirectory, *arguments: Any) -> Log:
    with translate_disk_errors(run):
        return Log(run, *arguments)


def record(run: RunDirectory, summary: Summary) -> None:
    with translate_disk_errors(run):
        write_summary(run.summary, summary)


@contextlib.contextmanager
def translate_disk_errors(run: RunDirectory) -> Iterator[None]:
    """Translate an OSError into a DiskError that names the file and how to resume."""
    try:
        yield
    except OSError as error:
        then = f"resume the run: {shell.resume_command(run.path)}" if run.exists() else "repeat the command"
        raise write_failure(error, "the run", str(run.path), then) from error


def note_first_checkpoint(run: RunDirectory) -> None:
    """Record in summary.json that a checkpoint exists, so that its loss does not go unnoticed."""
    with contextlib.suppress(OSError, NanolmError):
        update_summary(run.summary, has_checkpoint=True)
