"""The loop: how long, on what, how often."""

from __future__ import annotations

import dataclasses
import enum

from nanolm.config.fields import bounded


class Sampling(enum.Enum):
    """What a batch is made of.

    windows: stretches of text from random positions, drawn with replacement.
    epochs: the text in blocks of context_length, each once an epoch, in another order every epoch.
    lines: a line of text a row, each once an epoch; padded at its end, and padding is never scored.
    documents: the same with a document a row.
    """

    windows = "windows"
    epochs = "epochs"
    lines = "lines"
    documents = "documents"

    @property
    def in_rows(self) -> bool:
        """Whether a row is a piece of text with an end of its own."""
        return self in (Sampling.lines, Sampling.documents)


class Precision(enum.Enum):
    """auto: bf16 on a GPU that has it (Ampere or newer), fp16 on an older one, fp32 on CPU and mps; a resumed run
    keeps its own where the device has it.

    tf32: fp32 whose matrix products are made with 10 bits behind the point, by GPUs from Ampere on.
    """

    auto = "auto"
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


class AttentionBackend(enum.Enum):
    """How attention is computed; every way gives the same numbers up to rounding.

    auto: the fastest that is exact for the mask, the length and the device.
    dense: the formula over a table of all scores; the reference.
    sdpa: PyTorch's fused kernels.
    blocked: blocks of neighbours, for masks that see near by only.
    flex: FlexAttention, compiled for the mask; on a GPU, without attention dropout.
    """

    auto = "auto"
    dense = "dense"
    sdpa = "sdpa"
    blocked = "blocked"
    flex = "flex"


class Parallel(enum.Enum):
    """How the processes that torchrun starts share the work. Each has its share of every batch; one alone needs none.

    ddp: every process keeps the whole model (DistributedDataParallel).
    fsdp: every process keeps a part of the weights, the gradients and the optimizer's state (FSDP2, fully_shard).
    """

    ddp = "ddp"
    fsdp = "fsdp"


@dataclasses.dataclass
class TrainerConfig:
    """The loop. Steps are optimizer updates."""

    max_steps: int = bounded(1000, ge=1)
    # Sequences per optimizer step, summed over all processes. `gradient_accumulation` splits each process's share into
    # that many micro-batches to save memory; the update is the same.
    batch_size: int = bounded(16, ge=1)
    gradient_accumulation: int = bounded(1, ge=1, off="1 switches gradient accumulation off")
    sampling: Sampling = Sampling.windows
    # Gradients are scaled down to this norm, or each number of them is cut to this size; null: never.
    clip_norm: float | None = bounded(1.0, gt=0, off="null switches clipping by norm off")
    clip_value: float | None = bounded(None, gt=0, off="null switches clipping by value off")
    # A moving average of the weights with this decay is evaluated and saved beside them; null: none.
    ema_decay: float | None = bounded(None, gt=0, lt=1, off="null keeps no average of the weights")
    precision: Precision = Precision.auto
    # auto (cuda, else mps, else cpu), cpu, mps, cuda or cuda:N; cuda of several processes is a GPU for each
    device: str = "auto"
    # On a GPU: deterministic kernels, so that a run repeats bit for bit; false takes the fastest ones.
    deterministic: bool = True
    compile: bool = False
    attention_backend: AttentionBackend = AttentionBackend.auto
    parallel: Parallel = Parallel.ddp
    # Seconds that a process waits for the others before it takes one of them for dead.
    rank_timeout: int = bounded(600, ge=1, le=31_536_000)
    log_every: int = bounded(
        10, ge=1, off="{trainer.max_steps} (trainer.max_steps) writes one row, at the end; rows cannot be switched off"
    )
    eval_every: int = bounded(250, ge=1, off="{trainer.max_steps} (trainer.max_steps) evaluates only at the end")
    # Checkpoints: the best and the last always, and besides every so many steps, and when so many minutes have passed
    # since the last save; null: never by time.
    save_every: int = bounded(
        250, ge=1, off="{trainer.max_steps} (trainer.max_steps) saves only the best and the last checkpoint"
    )
    save_every_minutes: float | None = bounded(None, gt=0, off="null never saves by time")
    # How many of the newest stay, the best besides; null: all.
    keep_last: int | None = bounded(2, ge=1, off="1 keeps the best and the newest checkpoint, null keeps all")
    # Saved at every multiple of so many steps, and those stay for good; null: none.
    keep_every: int | None = bounded(None, ge=1, off="null keeps none for its step")
    # Written by a thread of its own while training goes on; a copy of the state is held in memory until it is done.
    save_in_background: bool = True
    # Tokens of the sample written at every evaluation; 0: none.
    sample_tokens: int = bounded(200, ge=0, off="0 writes no samples")
    # Rows have the norms of weights and gradients of each part of the model besides.
    log_norms: bool = False
    # FLOPs that one device can do in a second, for rows to say how much of it is used; null: those of known GPUs.
    peak_flops: float | None = bounded(None, gt=0, off="null takes it from the table of known GPUs")
    # A few steps are traced by PyTorch's profiler, into profile.json.
    profile: bool = False
    # What the run would come to, and how long it would take, is measured and printed; nothing is written.
    dry_run: bool = False
