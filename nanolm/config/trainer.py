"""The training loop: its length, batches, precision, evaluation and checkpoints."""

from __future__ import annotations

import dataclasses
from typing import Any

from nanolm.config.fields import Choice, Role, Trait, setting

# Values of trainer.compile. Not a Choice: OmegaConf refuses true and false for an enum.
COMPILE = ("auto", "true", "false")


class Sampling(Choice):
    """Ways to draw the rows of a batch."""

    windows = "windows", "Windows at random positions of the text, drawn with replacement."
    epochs = "epochs", "Blocks of context_length tokens, each once per epoch, in a new order every epoch."
    lines = "lines", "One line of text per row, each once per epoch; padding is never scored."
    documents = "documents", "One document per row, each once per epoch; padding is never scored."

    @property
    def in_rows(self) -> bool:
        """Whether each row is one line or document."""
        return self in (Sampling.lines, Sampling.documents)


class Precision(Choice):
    """Number formats of training."""

    auto = (
        "auto",
        "bf16 on GPUs that support it (Ampere or newer), fp16 on older ones, fp32 on mps. On a CPU bf16 if it has "
        "AVX512-BF16 or AMX and a feed-forward of size=tiny trains at least 1.25 times as fast (measured once per "
        "machine and cached), else fp32. A resumed run keeps its format where the device supports it.",
    )
    fp32 = "fp32", "32-bit floating point."
    tf32 = "tf32", "fp32 with TF32 matmuls (10-bit mantissa), on GPUs from Ampere on."
    bf16 = "bf16", "Mixed precision with bfloat16."
    fp16 = "fp16", "Mixed precision with float16 and loss scaling."


class AttentionBackend(Choice):
    """Implementations of attention. All give the same results up to rounding."""

    auto = "auto", "The fastest one that is exact for the mask, the length and the device."
    dense = "dense", "The formula, with the full matrix of scores; the reference."
    sdpa = "sdpa", "PyTorch's fused kernels (scaled_dot_product_attention)."
    blocked = "blocked", "Attention within neighbouring blocks, for masks with a bounded reach."
    flex = "flex", "FlexAttention, compiled for the mask; on a GPU, without attention dropout."


class Parallel(Choice):
    """Ways to share the work among the processes that torchrun starts. Each has its share of every batch."""

    ddp = "ddp", "Every process has the whole model (DistributedDataParallel)."
    fsdp = "fsdp", "Weights, gradients and optimizer state are sharded over the processes (FSDP2, fully_shard)."


# Traits of the settings that decide how many steps a run has.
BUDGET = (Trait.horizon, Trait.scale)


@dataclasses.dataclass
class TrainerConfig:
    """Settings of the training loop. A step is one optimizer update."""

    max_steps: int | None = setting(
        1000,
        doc="Number of training steps. null: another budget, one of those below.",
        traits=BUDGET,
        ge=1,
    )
    max_tokens: float | None = setting(
        None,
        doc="Budget in training tokens, such as 5e6: the largest number of steps that stays within it. Padding is not "
        "counted. null: another budget.",
        traits=BUDGET,
        gt=0,
        le=10**18,
    )
    max_epochs: float | None = setting(
        None, doc="Budget in passes over the train split. null: another budget.", traits=BUDGET, gt=0, le=10**9
    )
    max_flops: float | None = setting(
        None,
        doc="Budget in training FLOPs, forward and backward, by the formula of `nanolm count`. null: another budget.",
        traits=BUDGET,
        gt=0,
        le=1e36,
    )
    tokens_per_parameter: float | None = setting(
        None,
        doc="Budget in training tokens per parameter of the model; about 20 is compute-optimal (Hoffmann et al. 2022). "
        "null: another budget.",
        traits=BUDGET,
        gt=0,
        le=10**9,
    )
    max_minutes: float | None = setting(
        None,
        doc="Budget in minutes, from the start of the command to the end of training. Some steps are timed and undone, "
        "and the number of steps is then fixed. null: another budget.",
        traits=BUDGET,
        gt=0,
        le=10**6,
    )
    batch_size: int = setting(
        16, doc="Sequences per optimizer step, summed over all processes.", traits=(Trait.scale, Trait.batches), ge=1
    )
    batch_size_schedule: list[Any] = setting(
        default_factory=list,
        doc="Batch sizes before trainer.batch_size, each with the fraction of the steps at which it ends: "
        "[[0.25,4],[0.5,8]] trains on 4 sequences per step for a quarter of trainer.max_steps, on 8 until half of "
        "them, and then on batch_size. []: always batch_size.",
        traits=(Trait.scale, Trait.batches),
        off="[] keeps trainer.batch_size",
    )
    context_length_schedule: list[Any] = setting(
        default_factory=list,
        doc="Context lengths of the batches before size.context_length, each with the fraction of the steps at which "
        "it ends: [[0.3,16],[0.6,32]]. Evaluation always uses size.context_length. With epochs, lines or documents, "
        "each length has its own epochs. []: always size.context_length.",
        traits=(Trait.scale, Trait.batches),
        off="[] keeps size.context_length",
    )
    gradient_accumulation: int = setting(
        1,
        doc="Number of micro-batches that each process splits its share of a batch into, to save memory.",
        role=Role.runtime,
        traits=(Trait.rounding, Trait.scale),
        ge=1,
        off="1 disables gradient accumulation",
    )
    sampling: Sampling = setting(
        Sampling.windows, doc="How the rows of a batch are drawn.", traits=(Trait.evaluation, Trait.batches)
    )
    clip_norm: float | None = setting(
        1.0, doc="Maximum L2 norm of the gradient. null: no clipping.", gt=0, off="null disables clipping by norm"
    )
    clip_value: float | None = setting(
        None,
        doc="Maximum absolute value of each element of the gradient. null: no clipping.",
        gt=0,
        off="null disables clipping by value",
    )
    ema_decay: float | None = setting(
        None,
        doc="Decay of an exponential moving average of the weights, which is evaluated and saved with them. null: no "
        "average.",
        gt=0,
        lt=1,
        off="null disables the average of the weights",
    )
    average_last: float | None = setting(
        None,
        doc="Fraction of trainer.max_steps, at the end of the run, over which the weights are averaged, each step with "
        "the same weight (tail averaging, Ruppert 1988); evaluated and saved as the average of ema_decay. null: no "
        "average.",
        gt=0,
        le=1,
        off="null disables the average of the weights",
    )
    precision: Precision = setting(Precision.auto, doc="Number format.")
    device: str = setting(
        "auto",
        doc="auto (cuda if available, else mps, else cpu), cpu, mps, cuda or cuda:N. With several processes, cuda "
        "gives each its own GPU.",
        role=Role.runtime,
        traits=(Trait.rounding,),
    )
    deterministic: bool = setting(
        True,
        doc="Use deterministic GPU kernels, so that a run can be repeated bit for bit; false allows faster ones.",
        role=Role.runtime,
        traits=(Trait.rounding,),
    )
    compile: str = setting(
        "auto",
        doc="Compile the model and its loss with torch.compile: true, false or auto. auto compiles on an NVIDIA GPU if "
        "the run is estimated to take five minutes or more without, from its FLOPs at 100 TFLOP/s and 0.4 ms per layer "
        "and micro-batch, and if there is a C compiler; never on a CPU.",
        role=Role.runtime,
        traits=(Trait.rounding,),
    )
    cuda_graphs: bool = setting(
        False,
        doc="Record the compiled model as CUDA graphs (torch.compile, mode reduce-overhead), so that a small model "
        "does not wait for kernel launches. On one NVIDIA GPU, without gradient accumulation; not yet measured.",
        role=Role.runtime,
        traits=(Trait.rounding,),
    )
    attention_backend: AttentionBackend = setting(
        AttentionBackend.auto, doc="Implementation of attention.", role=Role.runtime, traits=(Trait.rounding,)
    )
    parallel: Parallel = setting(
        Parallel.ddp, doc="How processes share the work.", role=Role.runtime, traits=(Trait.rounding,)
    )
    rank_timeout: int = setting(
        600,
        doc="Seconds that a process waits for the others before it reports one of them as lost.",
        role=Role.runtime,
        ge=1,
        le=31_536_000,
    )
    log_every: int = setting(
        10,
        doc="Steps between two training rows in metrics.jsonl.",
        role=Role.reporting,
        ge=1,
        off="{trainer.max_steps} (trainer.max_steps) writes one row, at the end; rows cannot be disabled",
    )
    eval_every: int = setting(
        250,
        doc="Steps between two evaluations of the validation loss.",
        traits=(Trait.horizon,),
        ge=1,
        off="{trainer.max_steps} (trainer.max_steps) evaluates only at the end",
    )
    val_tokens: int | None = setting(
        None,
        doc="Validation tokens that an evaluation scores, always the same windows, spread over the split: an estimate, "
        "except for the last evaluation, which is exact. null: every evaluation scores the whole split.",
        ge=1,
        off="null makes every evaluation exact",
    )
    early_stop: int | None = setting(
        None,
        doc="Number of evaluations in a row without an improvement of the validation loss after which a run stops. "
        "null: never.",
        traits=(Trait.horizon,),
        ge=1,
        off="null disables early stopping",
    )
    early_stop_delta: float = setting(
        0.0,
        doc="Improvement in nats per token that trainer.early_stop counts as one only if it is exceeded.",
        traits=(Trait.horizon,),
        ge=0,
        off="0 counts every improvement",
    )
    estimate_batches: int = setting(
        0,
        doc="Random batches of an estimate of the training and the validation loss, as "
        "nanoGPT reports them. They are only shown; trainer.val_tokens limits the evaluation itself. 0: no estimates.",
        role=Role.reporting,
        ge=0,
        off="0 disables estimates",
    )
    save_every: int = setting(
        250,
        doc="Steps between two checkpoints. The best and the last state are saved as well.",
        role=Role.runtime,
        ge=1,
        off="{trainer.max_steps} (trainer.max_steps) saves only the best and the last checkpoint",
    )
    save_every_minutes: float | None = setting(
        None,
        doc="Minutes between two checkpoints, in addition to save_every. null: no saves by time.",
        role=Role.runtime,
        gt=0,
        off="null disables saves by time",
    )
    keep_last: int | None = setting(
        2,
        doc="Number of latest checkpoints to keep, in addition to the best one. null: all.",
        role=Role.runtime,
        ge=1,
        off="1 keeps the best and the latest checkpoint, null keeps all",
    )
    keep_every: int | None = setting(
        None,
        doc="Steps between two checkpoints that are saved and kept permanently. null: none.",
        role=Role.runtime,
        ge=1,
        off="null keeps no checkpoint permanently",
    )
    save_in_background: bool = setting(
        True,
        doc="Write checkpoints in a background thread, from a copy of the state in memory.",
        role=Role.runtime,
    )
    sample_tokens: int = setting(
        200,
        doc="Tokens of the sample that is generated at every evaluation. 0: no samples.",
        role=Role.reporting,
        ge=0,
        off="0 disables samples",
    )
    log_norms: bool = setting(
        False, doc="Log the norms of weights and gradients of each part of the model.", role=Role.reporting
    )
    peak_flops: float | None = setting(
        None,
        doc="Peak FLOP/s of one device, for the utilization (MFU) in metrics.jsonl. null: a table of known GPUs.",
        role=Role.reporting,
        gt=0,
        off="null uses the table of known GPUs",
    )

    def __post_init__(self) -> None:
        # OmegaConf converts true to "True".
        self.compile = str(self.compile).lower()

    @property
    def steps(self) -> int:
        """Number of training steps of a run whose budget is in steps; of any other, see nanolm.model.budget."""
        assert self.max_steps is not None, "the budget is not in steps"
        return self.max_steps

    @property
    def is_averaged(self) -> bool:
        """Whether the weights are averaged."""
        return self.ema_decay is not None or self.average_last is not None
