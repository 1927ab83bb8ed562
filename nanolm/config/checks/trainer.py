"""Check the settings of the trainer: batches, clipping, device, precision, attention backend and processes."""

from __future__ import annotations

from collections.abc import Iterator

from nanolm.config.model import AttentionKind, NgramConfig, TransformerConfig
from nanolm.config.optimizer import AdafactorConfig, MuonConfig, ScheduleFreeConfig
from nanolm.config.run import Config
from nanolm.config.trainer import COMPILE, AttentionBackend, Parallel, Precision
from nanolm.errors import NanolmError, SettingsError
from nanolm.option_types import DEVICES, DEVICES_HINT
from nanolm.torchrun import world_size

# FlexAttention has no kernels for narrower heads.
FLEX_HEAD_WIDTH = 16


def check_trainer(config: Config) -> Iterator[NanolmError]:
    """Find batches that cannot be split evenly, two ways of clipping, and two averages of the weights."""
    trainer = config.trainer
    schedule = trainer.batch_size_schedule
    sizes = {f"trainer.batch_size_schedule[{number}]": size for number, (_, size) in enumerate(schedule)}
    for key, batch_size in {"trainer.batch_size": trainer.batch_size, **sizes}.items():
        yield from _check_split(key, batch_size, trainer.gradient_accumulation)
    if trainer.clip_norm is not None and trainer.clip_value is not None:
        yield SettingsError(
            f"trainer.clip_norm ({trainer.clip_norm}) and trainer.clip_value ({trainer.clip_value}) are both set",
            where="trainer.clip_norm, trainer.clip_value",
            hint="use one of them: trainer.clip_norm=null clips by value",
        )
    averages = [key for key in ("ema_decay", "average_last") if getattr(trainer, key) is not None]
    if len(averages) > 1:
        yield SettingsError(
            f"trainer.ema_decay ({trainer.ema_decay}) and trainer.average_last ({trainer.average_last}) are both set",
            where="trainer.ema_decay, trainer.average_last",
            hint="use one of them: a run has one average of its weights",
        )
    for key in averages:
        if isinstance(config.optimizer, ScheduleFreeConfig):
            yield SettingsError(
                f"optimizer=schedule_free averages the weights itself, and trainer.{key} would average them again",
                where=f"trainer.{key}, optimizer",
                hint=f"use trainer.{key}=null, or another optimizer",
            )


def _check_split(key: str, batch_size: int, gradient_accumulation: int) -> Iterator[NanolmError]:
    """Find a batch size that cannot be split among the processes and their micro-batches."""
    n_processes = world_size()
    share = batch_size // n_processes
    setting = key.partition("[")[0]
    if batch_size % n_processes:
        yield SettingsError(
            f"{key} ({batch_size}) is not divisible by the {n_processes} processes",
            where=setting,
            hint="batch_size counts the sequences of all processes together; "
            f"use a multiple of {n_processes}, such as {(share + 1) * n_processes}",
        )
    elif share % gradient_accumulation:
        per_process = f" / {n_processes} processes = {share}" if n_processes > 1 else ""
        yield SettingsError(
            f"{key} ({batch_size}{per_process}) is not divisible by "
            f"trainer.gradient_accumulation ({gradient_accumulation})",
            where=f"{setting}, trainer.gradient_accumulation",
            hint="batch_size counts all sequences of an optimizer step; gradient_accumulation must divide "
            + ("it" if n_processes == 1 else "the share of each process"),
        )


def check_device(config: Config) -> Iterator[NanolmError]:
    """Find an unknown device, and fp16 on a CPU."""
    trainer = config.trainer
    if not DEVICES.fullmatch(trainer.device):
        yield SettingsError(f"trainer.device is {trainer.device!r}", where="trainer.device", hint=DEVICES_HINT)
    if trainer.precision is Precision.fp16 and trainer.device == "cpu":
        yield SettingsError(
            "trainer.precision=fp16 is slower and less accurate than fp32 on a CPU",
            where="trainer.precision, trainer.device",
            hint="use trainer.precision=bf16 or fp32",
        )


def check_compile(config: Config) -> Iterator[NanolmError]:
    """Find an unknown value of trainer.compile, and CUDA graphs without what they need."""
    trainer = config.trainer
    if trainer.compile not in COMPILE:
        yield SettingsError(
            f"trainer.compile is {trainer.compile!r}, and must be one of {', '.join(COMPILE)}",
            where="trainer.compile",
            hint="trainer.compile=false trains in eager mode",
        )
    if not trainer.cuda_graphs:
        return
    if trainer.device in ("cpu", "mps"):
        yield SettingsError(
            f"trainer.cuda_graphs=true needs an NVIDIA GPU, and trainer.device is {trainer.device}",
            where="trainer.cuda_graphs, trainer.device",
            hint="leave out trainer.cuda_graphs",
        )
    if trainer.compile == "false":
        yield SettingsError(
            "trainer.cuda_graphs=true records a compiled model, but trainer.compile is false",
            where="trainer.cuda_graphs, trainer.compile",
            hint="leave out trainer.compile",
        )
    if trainer.gradient_accumulation > 1:
        yield SettingsError(
            "trainer.cuda_graphs=true does not support gradient accumulation "
            f"(trainer.gradient_accumulation is {trainer.gradient_accumulation})",
            where="trainer.cuda_graphs, trainer.gradient_accumulation",
            hint="use trainer.gradient_accumulation=1; CUDA graphs are for small models",
        )


def check_attention_backend(config: Config) -> Iterator[NanolmError]:
    """Find an attention backend that does not support the model or the device. Masks are checked by check_mask."""
    model, size, backend = config.model, config.size, config.trainer.attention_backend
    if not isinstance(model, TransformerConfig) or backend is AttentionBackend.auto:
        return
    if model.attention is AttentionKind.uniform:
        yield SettingsError(
            f"trainer.attention_backend is {backend.name}, but uniform attention has only one implementation",
            where="trainer.attention_backend, model.attention",
            hint="leave out trainer.attention_backend",
        )
    if backend is not AttentionBackend.flex:
        return
    if model.dropout_of(model.attention_dropout):
        yield SettingsError(
            "trainer.attention_backend=flex does not support attention dropout",
            where="trainer.attention_backend, model.attention_dropout",
            hint="use model.attention_dropout=0, or another backend",
        )
    if min(size.key_width, size.value_width) < FLEX_HEAD_WIDTH:
        yield SettingsError(
            f"trainer.attention_backend=flex needs heads of width {FLEX_HEAD_WIDTH} or more, but size.d_model "
            f"({size.d_model}) and size.n_heads ({size.n_heads}) give a width of {size.key_width} "
            f"(values {size.value_width})",
            where="trainer.attention_backend, size.d_model, size.n_heads",
            hint="use fewer or wider heads, or trainer.attention_backend=sdpa",
        )
    if config.trainer.device == "cpu":
        yield SettingsError(
            "trainer.attention_backend=flex has no backward pass on a CPU",
            where="trainer.attention_backend, trainer.device",
            hint="use another backend, or a GPU",
        )


def check_processes(config: Config) -> Iterator[NanolmError]:
    """Find settings that do not work with several processes."""
    trainer, n_processes = config.trainer, world_size()
    if n_processes == 1:
        return
    if trainer.parallel is Parallel.fsdp and isinstance(config.optimizer, MuonConfig | AdafactorConfig):
        yield SettingsError(
            f"optimizer={config.optimizer.name} needs whole matrices, but trainer.parallel=fsdp shards their rows",
            where="optimizer, trainer.parallel",
            hint="use trainer.parallel=ddp, or an elementwise optimizer: adamw, adam, sgd, lion, schedule_free",
        )
    if trainer.cuda_graphs:
        yield SettingsError(
            f"trainer.cuda_graphs=true is not supported with several processes (there are {n_processes})",
            where="trainer.cuda_graphs",
            hint="leave out trainer.cuda_graphs",
        )
    if trainer.device == "mps" or ":" in trainer.device:
        yield SettingsError(
            f"trainer.device={trainer.device} is a single device, but each of the {n_processes} processes needs one",
            where="trainer.device",
            hint="trainer.device=cuda gives each process on a machine its own GPU; cpu shares the cores",
        )
    if isinstance(config.model, NgramConfig):
        yield SettingsError(
            f"model={config.model.name} is fitted in one pass, which cannot be shared by several processes",
            where="model",
            hint="leave out torchrun; in a sweep, leave out hydra.launcher.nodes, and use one GPU for each job",
        )
