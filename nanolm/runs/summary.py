"""The typed contents of summary.json: provenance, progress and results of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from pathlib import Path
from typing import IO, Any, TypedDict

from nanolm.config.budget import Budget
from nanolm.files import open_regular, write_durably
from nanolm.json_text import dump_json, parse_object
from nanolm.runs.records import from_json
from nanolm.untrusted import StrPath, damaged, folder_of, read_inside, unreadable

TRAINED = "trained"
FITTED = "fitted"
IMPORTED = "imported"

STOPPED_EARLY = "stopped_early"
# The statuses of a run with a final result.
FINISHED = ("completed", STOPPED_EARLY)

HINT = "restore it from a copy of the run, or delete it: resuming the run writes it again"


class Git(TypedDict, total=False):
    """The commit of the working directory, and whether tracked files differ from it."""

    commit: str
    dirty: bool


class SplitScore(TypedDict, total=False):
    """A loss on the test split: of the checkpoint of `step`, when `steps_done` steps were done."""

    loss: float
    bits_per_byte: float
    step: int
    chosen_by: str
    steps_done: int


class ParentReference(TypedDict, total=False):
    """The checkpoint that a fork started from, with the SHA-256 of its weights."""

    run: str
    step: int
    identity: str | None
    weights: str


class ImportReference(TypedDict, total=False):
    """Where an imported model comes from.

    `source` is the folder or the name on the hub, as typed; `revision` is the commit on the hub; `context_length` is
    that of the run if it was given; `files` has the SHA-256 of every file that was read.
    """

    source: str
    revision: str
    architecture: str
    context_length: int
    files: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The fields of summary.json, in the order of the file. None means unknown or not applicable.

    Attributes:
        status: running, completed, stopped_early, interrupted, pruned, diverged or failed.
        budget: the setting of the trainer that decides the number of steps, with its value.
        max_steps: optimizer steps of the whole run, which the budget has been turned into.
        kind: TRAINED by gradient steps, FITTED in one pass (a counted n-gram model), or IMPORTED.
        step: optimizer steps done.
        tokens: training tokens scored, over all epochs, and those that n-grams were counted on (counted_tokens).
        seconds: training time, including evaluations and saves.
        tokens_per_second: training throughput, without evaluations and saves.
        peak_memory_bytes: peak memory of the device; on a CPU, of the process.
        best_val_loss: nats per token.
        best_val_sample: validation tokens that best_val_loss was estimated over (trainer.val_tokens); None: exact.
        final_val_loss: nats per token.
        final_val_sample: the same of final_val_loss.
        bits_per_byte: of the best validation loss.
        best_ema_val_loss: of the averaged weights (trainer.ema_decay); nats per token.
        test_loss: of the selected checkpoint on the test split, scored when the run was completed; nats per token.
        test_bits_per_byte: of the same loss.
        test_step: step of the selected checkpoint.
        test_chosen_by: what it was chosen by: best_val_loss.
        test_history: every score, the last one included: a run that is extended is scored again.
        skipped_updates: updates skipped because an fp16 gradient overflowed.
        continued_from: step from which a run was continued that had stopped early.
        error: the exception that ended a failed run.
        has_checkpoint: whether a checkpoint was ever saved.
        choices: the option chosen in each config group.
        group: the sweep that the run belongs to.
        parameters: all parameters of the model.
        trained_parameters: those of low-rank adapters, if only they are trained; else all.
        entries: table entries of a fitted model, or of the n-grams that a model mixes into its logits.
        flops_per_token: of a training step, forward and backward.
        lossless: whether decoding the tokens gives the text back; False means that <unk> hides text.
        is_noncausal: whether the mask lets positions attend to later ones.
        counted_tokens: training tokens that n-grams were counted on before the first step (model.ngram_mix).
        val_scored_tokens: validation tokens that contribute to the loss.
        baseline_losses: losses of counted n-grams on the validation tokens, in nats per token.
        baseline_bits_per_byte: of compressors on the validation text.
        identity: hash of the experiment's settings.
        corpus: SHA-256 of the text.
        tokenizer: SHA-256 of the tokenizer.
        git: commit of the working directory.
        parent: checkpoint that a fork started from.
        base: SHA-256 of the frozen weights of a run with low-rank adapters (base.safetensors).
        imported: where an imported model comes from.
    """

    status: str | None = None
    kind: str | None = None
    budget: dict[str, float] = dataclasses.field(default_factory=dict)
    max_steps: int | None = None
    step: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    best_val_loss: float | None = None
    best_val_sample: int | None = None
    best_step: int | None = None
    final_val_loss: float | None = None
    final_val_sample: int | None = None
    bits_per_byte: float | None = None
    best_ema_val_loss: float | None = None
    final_ema_val_loss: float | None = None
    test_loss: float | None = None
    test_bits_per_byte: float | None = None
    test_step: int | None = None
    test_chosen_by: str | None = None
    test_history: list[SplitScore] = dataclasses.field(default_factory=list)
    skipped_updates: int | None = None
    continued_from: int | None = None
    error: str | None = None
    has_checkpoint: bool | None = None
    choices: dict[str, str] = dataclasses.field(default_factory=dict)
    group: str | None = None
    seed: int | None = None
    parameters: int | None = None
    trained_parameters: int | None = None
    entries: int | None = None
    flops_per_token: int | None = None
    vocab_size: int | None = None
    lossless: bool | None = None
    is_noncausal: bool | None = None
    train_tokens: int | None = None
    counted_tokens: int | None = None
    val_tokens: int | None = None
    val_scored_tokens: int | None = None
    baseline_losses: dict[str, float] = dataclasses.field(default_factory=dict)
    baseline_bits_per_byte: dict[str, float] = dataclasses.field(default_factory=dict)
    device: str | None = None
    precision: str | None = None
    ranks: int | None = None
    deterministic: bool | None = None
    gpu: str | None = None
    compute_capability: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    identity: str | None = None
    corpus: str | None = None
    tokenizer: str | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    git: Git = dataclasses.field(default_factory=Git)
    parent: ParentReference | None = None
    base: str | None = None
    imported: ImportReference | None = None
    wandb_id: str | None = None
    wandb_mode: str | None = None
    wandb_project: str | None = None
    wandb_entity: str | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether the model was fitted in one pass instead of trained in steps."""
        return self.kind == FITTED

    def describe_parameters(self) -> str:
        """Describe the number of parameters, and how many of them are trained if not all are."""
        text = f"{self.parameters or 0:,} parameters"
        if not self.parameters or self.trained_parameters in (None, self.parameters):
            return text
        return f"{text}, {self.trained_parameters:,} of them trained ({self.trained_parameters / self.parameters:.2%})"

    @property
    def is_imported(self) -> bool:
        """Whether the model was imported and not trained here."""
        return self.kind == IMPORTED

    @property
    def is_lossy(self) -> bool:
        """Whether the tokenizer is known to hide text behind <unk>."""
        return self.lossless is False

    @property
    def steps_done(self) -> int:
        """Optimizer steps done; 0 where the summary does not say."""
        return self.step or 0

    def is_complete(self, budget: Budget) -> bool:
        """Return whether no step of a budget is left to train; a fitted or imported model never has a next step."""
        if self.status != "completed" or self.is_fitted or self.is_imported:
            return self.status == "completed"
        return self.steps_done >= budget.value if budget.in_steps else self.budget == budget.as_dict()


def read_summary(path: StrPath) -> Summary:
    """Read summary.json; an empty summary where there is no file yet.

    Raises:
        RunError: the file cannot be read, is not a JSON object, or has a value of the wrong type.
    """
    table = _read_table(path)
    try:
        return from_json(Summary, table)
    except ValueError as error:
        raise damaged(path, str(error), HINT) from error


def write_summary(path: Path, summary: Summary) -> None:
    """Replace summary.json atomically."""
    write_durably(path, _encode(dataclasses.asdict(summary)))


def update_summary(path: Path, **fields: Any) -> None:
    """Replace some fields of summary.json atomically, keeping everything else that is in the file.

    Raises:
        RunError: as `read_summary`.
    """
    write_durably(path, _encode(_read_table(path) | fields))


def write_final_summary(path: Path, summary: Summary) -> None:
    """Write summary.json atomically, or in place if the disk has no room for a second copy.

    If neither is possible, the file stays as it is, and the run counts as unfinished.
    """
    try:
        write_summary(path, summary)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            with contextlib.suppress(OSError):
                _write_in_place(path, _encode(dataclasses.asdict(summary)))


def _write_in_place(path: Path, content: bytes) -> None:
    """Overwrite a file, if its blocks on disk have room for the content; a failed write restores the file."""
    with open_regular(path, "rb+", is_buffered=False) as file:
        before = file.read()
        status = os.fstat(file.fileno())
        # Windows does not tell the size of the blocks.
        if len(content) > max(getattr(status, "st_blocks", 0) * 512, len(before)):
            return
        try:
            _overwrite(file, content)
        except OSError:
            _overwrite(file, before)


def _overwrite(file: IO[bytes], content: bytes) -> None:
    file.seek(0)
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
    file.truncate()
    os.fsync(file.fileno())


def _read_table(path: StrPath) -> dict[str, Any]:
    try:
        return parse_object(read_inside(path, folder_of(path)))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise damaged(path, str(error), HINT) from error


def _encode(table: dict[str, Any]) -> bytes:
    return (dump_json(table, indent=2) + "\n").encode()
