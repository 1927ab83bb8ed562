"""The typed schema of every group of settings, their bounds, and the checks across fields.

Defaults live here and nowhere else; a YAML file in configs/ says only what differs. Bounds stand beside the
default they belong to. Nothing here imports torch or hydra.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import operator
from collections.abc import Iterator
from typing import Any

from omegaconf import MISSING

from nanolm.errors import NanolmError, SettingsError, nearest
from nanolm.registry import DATASETS, LOGGERS, MASKS, MODELS, OPTIMIZERS, SCHEDULERS, TOKENIZERS

BOUNDS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "more than"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "less than"),
}


def bounded(default: Any = MISSING, **bounds: float) -> Any:
    """A field with a default and the range its value must lie in: ge, gt, le, lt."""
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def in_context(default: int) -> Any:
    """A count of positions, of a mask: from 1 to size.context_length."""
    return dataclasses.field(default=default, metadata={"bounds": {"ge": 1}, "in_context": True})


class SplitBy(enum.Enum):
    """What is held out for validation and test.

    fraction: the end of the text, as it stands; the cut may go through a document.
    document: whole documents, drawn at random.
    line: single lines, drawn at random.
    """

    fraction = "fraction"
    document = "document"
    line = "line"


class Newlines(enum.Enum):
    """Line ends: kept as they stand, or CRLF and lone CR made LF."""

    keep = "keep"
    normalize = "normalize"


class Bom(enum.Enum):
    """A byte order mark (U+FEFF) that begins a document: kept as a character, or taken off."""

    keep = "keep"
    strip = "strip"


@dataclasses.dataclass
class DatasetConfig:
    """What every dataset has: how much is held out, by what, and how line ends and byte order marks are read."""

    name: str = MISSING
    val_fraction: float = bounded(0.1, gt=0, lt=1)
    # 0: there is no test split.
    test_fraction: float = bounded(0.0, ge=0, lt=1)
    split_by: SplitBy = SplitBy.fraction
    # Draws the documents or lines that are held out; apart from `seed`, so that all seeds are scored on the same text.
    split_seed: int = bounded(1337, ge=0, lt=2**63)
    newlines: Newlines = Newlines.keep
    bom: Bom = Bom.keep


@dataclasses.dataclass
class PythonDocsConfig(DatasetConfig):
    """The language reference that comes with every CPython."""

    name: str = "python_docs"


@dataclasses.dataclass
class PythonStdlibConfig(DatasetConfig):
    """The source of the running CPython's standard library, without its tests; a file a document."""

    name: str = "python_stdlib"


@dataclasses.dataclass
class TextConfig(DatasetConfig):
    """Anyone's text: a file, a folder (every file in it) or a glob such as 'notes/**/*.md'; a file a document."""

    name: str = "text"
    path: str = MISSING
    # Files, folders or globs of their own, in place of a fraction of `path`.
    val_path: str | None = None
    test_path: str | None = None


@dataclasses.dataclass
class JsonlConfig(DatasetConfig):
    """JSON objects, one a line; the text of `field` is a document. Blank lines are passed over."""

    name: str = "jsonl"
    path: str = MISSING
    field: str = "text"
    # Files, folders or globs of their own, in place of a fraction of `path`.
    val_path: str | None = None
    test_path: str | None = None


@dataclasses.dataclass
class HuggingFaceConfig(DatasetConfig):
    """A dataset of the Hugging Face hub, by its name there, or a local folder of parquet or JSON files."""

    name: str = "huggingface"
    path: str = MISSING
    # The hub's word for it is the configuration of a dataset, such as wikitext-2-raw-v1.
    subset: str | None = None
    field: str = "text"
    train_split: str = "train"
    # The dataset's own splits, in place of a fraction of `train_split`.
    val_split: str | None = None
    test_split: str | None = None
    # Read as it comes; false fetches all of it into the cache of `datasets` first.
    streaming: bool = True
    # Reads the first so many documents of each split; null: all.
    max_documents: int | None = bounded(None, ge=1)


@dataclasses.dataclass
class DownloadConfig(DatasetConfig):
    """A text fetched once into the cache, or read from `path`; either way it must have this sha256.

    sha256 null takes whatever comes, for a file that is issued anew now and then; the run still records what it read.
    """

    name: str = "download"
    url: str = MISSING
    sha256: str | None = MISSING
    path: str | None = None
    # Keeps what stands between Project Gutenberg's "*** START OF" and "*** END OF" lines.
    strip_gutenberg: bool = False


@dataclasses.dataclass
class TokenizerConfig:
    """What every tokenizer has."""

    name: str = MISSING


@dataclasses.dataclass
class CharConfig(TokenizerConfig):
    """One token a character; the vocabulary is the characters of the corpus in code point order."""

    name: str = "char"


@dataclasses.dataclass
class ByteConfig(TokenizerConfig):
    """One token a byte of UTF-8; 256 of them."""

    name: str = "byte"


@dataclasses.dataclass
class WordsConfig(TokenizerConfig):
    """What every tokenizer by words has. The most frequent words are the vocabulary."""

    min_frequency: int = bounded(1, ge=1)
    # The special tokens count as well; null: no limit.
    max_size: int | None = bounded(None, ge=1)
    # Without <unk> an unseen word is an error; without <eos> line ends are lost.
    special_tokens: list[str] = dataclasses.field(default_factory=lambda: ["<unk>", "<eos>"])


@dataclasses.dataclass
class WordConfig(WordsConfig):
    """Words, numbers and signs by our own rules."""

    name: str = "word"
    lowercase: bool = False


@dataclasses.dataclass
class SpacyConfig(WordsConfig):
    """Words by spaCy's rules for a language: pip install nanolm[spacy]."""

    name: str = "spacy"
    language: str = "en"


@dataclasses.dataclass
class TorchtextConfig(WordsConfig):
    """Words by a splitter of torchtext 0.6 or of the user's, in torchtext's Vocab.

    Here too max_size counts the special tokens; torchtext itself does not count them.
    """

    name: str = "torchtext"
    # basic_english, split (at white space; so does null), toktok, moses, ... or a name registered by a plugin
    splitter: str | None = "basic_english"


@dataclasses.dataclass
class BpeConfig(TokenizerConfig):
    """Byte-pair encoding trained on the corpus, over bytes."""

    name: str = "bpe"
    # With the 256 bytes and the special tokens; a small corpus may give fewer.
    vocab_size: int = bounded(4096, ge=256)
    # Pairs seen less often are not merged.
    min_frequency: int = bounded(2, ge=1)
    special_tokens: list[str] = dataclasses.field(default_factory=lambda: ["<|endoftext|>"])


@dataclasses.dataclass
class UnigramConfig(TokenizerConfig):
    """A unigram language model over pieces of bytes, trained on the corpus."""

    name: str = "unigram"
    # With the 256 bytes and the special tokens; a small corpus may give fewer.
    vocab_size: int = bounded(4096, ge=256)
    special_tokens: list[str] = dataclasses.field(default_factory=lambda: ["<|endoftext|>"])


class SentencePieceModel(enum.Enum):
    """What SentencePiece trains: byte-pair encoding or a unigram language model."""

    bpe = "bpe"
    unigram = "unigram"


@dataclasses.dataclass
class SentencePieceConfig(TokenizerConfig):
    """SentencePiece over characters, trained on the corpus; bytes stand in where it has no piece."""

    name: str = "sentencepiece"
    # With the 256 bytes, the line end, <unk> and </s>; a small corpus may give fewer.
    vocab_size: int = bounded(4096, ge=260)
    model_type: SentencePieceModel = SentencePieceModel.bpe
    # The share of the corpus whose characters are pieces; those of the rest are written in bytes.
    character_coverage: float = bounded(1.0, ge=0.98, le=1)


@dataclasses.dataclass
class Gpt2Config(TokenizerConfig):
    """GPT-2's own ids, from a folder with encoder.json and vocab.bpe, from a tokenizer.json, or downloaded."""

    name: str = "gpt2"
    path: str | None = None
    encoder_url: str = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json"
    encoder_sha256: str = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    merges_url: str = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
    merges_sha256: str = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


@dataclasses.dataclass
class PretrainedConfig(TokenizerConfig):
    """Any tokenizer.json of Hugging Face tokenizers, or a folder with one."""

    name: str = "pretrained"
    path: str = MISSING


class Positions(enum.Enum):
    """How a token knows where it stands."""

    learned = "learned"
    rotary = "rotary"


class Norm(enum.Enum):
    """What keeps the residual stream in range: LayerNorm with its weights, or RMSNorm without any."""

    layer_norm = "layer_norm"
    rms_norm = "rms_norm"


class Activation(enum.Enum):
    """The non-linearity between the two layers of the feed-forward."""

    gelu_tanh = "gelu_tanh"
    relu_squared = "relu_squared"


class Initialization(enum.Enum):
    """How the weights begin.

    gpt2: N(0, 0.02), projections into the residual stream divided by sqrt(2 n_layers), biases zero.
    zero_projections: those projections and the head are zero, so that every block begins as the identity.
    """

    gpt2 = "gpt2"
    zero_projections = "zero_projections"


@dataclasses.dataclass
class ModelConfig:
    """What every model has."""

    name: str = MISSING


@dataclasses.dataclass
class BigramConfig(ModelConfig):
    """A V x V table of logits: the next token given this one."""

    name: str = "bigram"


@dataclasses.dataclass
class TransformerConfig(ModelConfig):
    """The parts of the one transformer. As it stands here it is `model=gpt`, today's recipe."""

    name: str = "transformer"
    positions: Positions = Positions.rotary
    norm: Norm = Norm.rms_norm
    activation: Activation = Activation.relu_squared
    initialization: Initialization = Initialization.zero_projections
    qk_norm: bool = True
    bias: bool = False
    # Of attention's four projections; null: as `bias` says.
    attention_bias: bool | None = None
    tied_head: bool = False
    # A number for each token, added to its logit.
    head_bias: bool = False
    dropout: float = bounded(0.0, ge=0, lt=1)


@dataclasses.dataclass
class SizeConfig:
    """How large the model is. A bigram reads only context_length."""

    n_layers: int = bounded(ge=1)
    n_heads: int = bounded(ge=1)
    d_model: int = bounded(ge=1)
    context_length: int = bounded(ge=1)


@dataclasses.dataclass
class MaskConfig:
    """Which positions a query may attend to: the same in all layers, or a pattern of masks over the layers."""

    name: str = MISSING
    # Masks that the layers take in turn, [causal, banded_causal], or letters such as SSSL: S is banded_causal, L is
    # causal. A mask of the pattern has the settings written here that are its own too, and its defaults for the rest.
    pattern: Any = None


@dataclasses.dataclass
class NoMaskConfig(MaskConfig):
    """Everything, before and after it."""

    name: str = "none"


@dataclasses.dataclass
class CausalConfig(MaskConfig):
    """Itself and everything before it."""

    name: str = "causal"


@dataclasses.dataclass
class WindowConfig(MaskConfig):
    """What every mask has that sees a band around itself."""

    # Positions seen on a side; a position sees itself besides.
    window: int = in_context(16)


@dataclasses.dataclass
class BandedConfig(WindowConfig):
    """Itself, the `window` before it and the `window` after it."""

    name: str = "banded"


@dataclasses.dataclass
class BandedCausalConfig(WindowConfig):
    """Itself and the `window` before it: the locally banded layers of GPT-3 (Brown et al. 2020, section 2.1)."""

    name: str = "banded_causal"


@dataclasses.dataclass
class PrefixConfig(MaskConfig):
    """Itself and everything before it, and all of the first `prefix_length` positions (Raffel et al. 2020, 3.2.1)."""

    name: str = "prefix"
    prefix_length: int = in_context(16)


@dataclasses.dataclass
class StridedConfig(MaskConfig):
    """Itself and every `stride`-th before it (Sparse Transformer, Child et al. 2019, section 4.3)."""

    name: str = "strided"
    stride: int = in_context(8)


@dataclasses.dataclass
class BlockLocalConfig(MaskConfig):
    """Itself and what is before it in its own block of `block` positions (Child et al. 2019, section 4.3)."""

    name: str = "block_local"
    block: int = in_context(16)


@dataclasses.dataclass
class PatternConfig(WindowConfig, PrefixConfig, StridedConfig, BlockLocalConfig):
    """A pattern whose masks have settings of several kinds, such as [strided, banded_causal]."""

    name: str = "pattern"


@dataclasses.dataclass
class OptimizerConfig:
    """What every optimizer has."""

    name: str = MISSING
    lr: float = bounded(2e-3, gt=0)
    weight_decay: float = bounded(0.0, ge=0)


@dataclasses.dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019). Weight decay reaches matrices; embeddings, norms and biases have none."""

    name: str = "adamw"
    weight_decay: float = bounded(0.1, ge=0)
    beta1: float = bounded(0.9, ge=0, lt=1)
    beta2: float = bounded(0.99, ge=0, lt=1)
    eps: float = bounded(1e-8, gt=0)


@dataclasses.dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    lr: float = bounded(0.1, gt=0)
    momentum: float = bounded(0.9, ge=0, lt=1)


@dataclasses.dataclass
class SchedulerConfig:
    """What every schedule has: lr rises linearly over `warmup_steps` (null: a twentieth of trainer.max_steps)."""

    name: str = MISSING
    warmup_steps: int | None = bounded(None, ge=0)


@dataclasses.dataclass
class ConstantConfig(SchedulerConfig):
    """lr stays where the warmup left it."""

    name: str = "constant"


@dataclasses.dataclass
class CosineConfig(SchedulerConfig):
    """Half a cosine from lr to `final_fraction` of it at trainer.max_steps (Loshchilov and Hutter 2017)."""

    name: str = "cosine"
    final_fraction: float = bounded(0.1, ge=0, le=1)


class Batches(enum.Enum):
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
        return self in (Batches.lines, Batches.documents)


class Precision(enum.Enum):
    """auto: bf16 on a GPU that has it, fp16 on an older one, fp32 on CPU and mps."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclasses.dataclass
class TrainerConfig:
    """The loop. Steps are optimizer updates."""

    max_steps: int = bounded(1000, ge=1)
    # Sequences an update. `accumulate` cuts them into that many parts to save memory; the update is the same.
    batch_size: int = bounded(16, ge=1)
    accumulate: int = bounded(1, ge=1)
    batches: Batches = Batches.windows
    # Gradients are scaled down to this norm; null: never.
    clip_norm: float | None = bounded(1.0, gt=0)
    precision: Precision = Precision.auto
    # auto (cuda, else mps, else cpu), cpu, mps, cuda or cuda:N
    device: str = "auto"
    compile: bool = False
    log_every: int = bounded(10, ge=1)
    eval_every: int = bounded(250, ge=1)
    save_every: int = bounded(250, ge=1)
    # Tokens of the sample written at every evaluation; 0: none.
    sample_tokens: int = bounded(200, ge=0)


@dataclasses.dataclass
class LoggerConfig:
    """What every logger has. metrics.jsonl is written whatever is chosen here."""

    name: str = MISSING


@dataclasses.dataclass
class NoLoggerConfig(LoggerConfig):
    """metrics.jsonl and the console only."""

    name: str = "none"


class WandbMode(enum.Enum):
    """auto: online when there is an account (an API key) and it answers, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"


@dataclasses.dataclass
class WandbConfig(LoggerConfig):
    """Weights & Biases. It never stops a run and never changes one."""

    name: str = "wandb"
    project: str = "nanolm"
    entity: str | None = None
    group: str | None = None
    mode: WandbMode = WandbMode.auto
    # Seconds to wait for the server before the run goes on offline.
    patience: float = bounded(5.0, gt=0)


@dataclasses.dataclass
class Config:
    """Everything that it takes to repeat a run."""

    dataset: DatasetConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    model: ModelConfig = MISSING
    size: SizeConfig = MISSING
    mask: MaskConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    scheduler: SchedulerConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    seed: int = bounded(1337, ge=0, lt=2**63)
    # never, auto (go on where a run with these settings was cut off) or a run directory
    resume: str = "never"
    # Modules of one's own that register models, optimizers, masks, ...
    plugins: list[str] = dataclasses.field(default_factory=list)


# The schema of every built-in option. A plugin's own comes with its decorator.
for _registry, _schemas in {
    DATASETS: (
        PythonDocsConfig,
        PythonStdlibConfig,
        TextConfig,
        JsonlConfig,
        HuggingFaceConfig,
        DownloadConfig,
    ),
    TOKENIZERS: (
        CharConfig,
        ByteConfig,
        WordConfig,
        SpacyConfig,
        TorchtextConfig,
        BpeConfig,
        UnigramConfig,
        SentencePieceConfig,
        Gpt2Config,
        PretrainedConfig,
    ),
    MODELS: (BigramConfig, TransformerConfig),
    MASKS: (
        NoMaskConfig,
        CausalConfig,
        BandedConfig,
        BandedCausalConfig,
        PrefixConfig,
        StridedConfig,
        BlockLocalConfig,
        PatternConfig,
    ),
    OPTIMIZERS: (AdamWConfig, SGDConfig),
    SCHEDULERS: (ConstantConfig, CosineConfig),
    LOGGERS: (NoLoggerConfig, WandbConfig),
}.items():
    for _schema in _schemas:
        _registry.schemas[_schema.name] = _schema

# Groups with one schema, whatever the option.
SINGLE_SCHEMAS: dict[str, type[Any]] = {"size": SizeConfig, "trainer": TrainerConfig}

# The schema of an option that a plugin registers without one.
BASE_SCHEMAS: dict[str, type[Any]] = {
    "dataset": DatasetConfig,
    "tokenizer": TokenizerConfig,
    "model": ModelConfig,
    "mask": MaskConfig,
    "optimizer": OptimizerConfig,
    "scheduler": SchedulerConfig,
    "logger": LoggerConfig,
}

# What a letter of mask.pattern stands for.
PATTERN_LETTERS = {"S": "banded_causal", "L": "causal"}

# What may differ between a run and its continuation. The files may move; the text must be the same bytes.
MAY_CHANGE = {
    "dataset.path",
    "dataset.test_path",
    "dataset.val_path",
    "plugins",
    "resume",
    "trainer.accumulate",
    "trainer.compile",
    "trainer.device",
    "trainer.eval_every",
    "trainer.log_every",
    "trainer.max_steps",
    "trainer.sample_tokens",
    "trainer.save_every",
}


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value for this setting than the run it continues."""
    return key in MAY_CHANGE or key.split(".")[0] == "logger"


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Every setting of a dataclass and the dataclasses in it: its dotted key, its field, its value."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from leaves(value, f"{key}.")
        else:
            yield key, field, value


def flat(config: Config) -> dict[str, Any]:
    """The settings as {dotted key: plain value}, enums by their name."""
    return {key: value.name if isinstance(value, enum.Enum) else value for key, _, value in leaves(config)}


def identity(config: Config) -> str:
    """A hash of all that decides a run's numbers: two runs with the same one are the same experiment."""
    decisive = {key: value for key, value in flat(config).items() if not may_change(key)}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def layer_masks(config: Config) -> list[MaskConfig]:
    """The mask of each layer, its own settings and no pattern in it. The settings must be sound."""
    names = _pattern_names(config.mask)
    parts = [_part(config.mask, name) for name in names] if names else [config.mask]
    return [parts[layer % len(parts)] for layer in range(config.size.n_layers)]


def layers_by_mask(config: Config) -> list[tuple[MaskConfig, list[int]]]:
    """The masks that differ, in the order in which layers first have them, each with its layers, counted from 0."""
    found: list[tuple[MaskConfig, list[int]]] = []
    for layer, mask in enumerate(layer_masks(config)):
        known = next((layers for other, layers in found if other == mask), None)
        if known is None:
            found.append((mask, [layer]))
        else:
            known.append(layer)
    return found


def _pattern_names(mask: MaskConfig) -> list[str]:
    """The masks of a pattern, by name; none where there is no pattern."""
    if isinstance(mask.pattern, str):
        return [PATTERN_LETTERS.get(letter, letter) for letter in mask.pattern]
    return list(mask.pattern or [])


def _part(base: MaskConfig, name: str) -> MaskConfig:
    """The settings of one mask of a pattern."""
    schema = MASKS.schemas.get(name, MaskConfig)
    written = {
        field.name: getattr(base, field.name)
        for field in dataclasses.fields(schema)
        if field.name not in ("name", "pattern") and hasattr(base, field.name)
    }
    return schema(name=name, pattern=None, **written)


def check(config: Config) -> list[NanolmError]:
    """Everything that is wrong with these settings as far as can be told without the data."""
    problems: list[NanolmError] = []
    for key, field, value in leaves(config):
        if value is None or isinstance(value, str):
            continue
        for bound, limit in field.metadata.get("bounds", {}).items():
            holds, words = BOUNDS[bound]
            if not holds(value, limit):
                problems.append(SettingsError(f"{key} is {value}, and must be {words} {limit}", where=key))
    if problems:
        return problems
    for check_across in (_check_splits, _check_widths, _check_masks, _check_batch, _check_warmup, _check_device):
        problems += check_across(config)
    return problems


def _check_splits(config: Config) -> Iterator[NanolmError]:
    dataset = config.dataset
    if dataset.val_fraction + dataset.test_fraction >= 1:
        yield SettingsError(
            f"dataset.val_fraction {dataset.val_fraction} and dataset.test_fraction {dataset.test_fraction} leave "
            "nothing to train on",
            where="dataset.val_fraction, dataset.test_fraction",
            mend="together they must be less than 1; 0.1 and 0.1 leave 80%",
        )
    if config.trainer.batches is Batches.documents and dataset.split_by is SplitBy.line:
        yield SettingsError(
            "trainer.batches documents needs whole documents, and dataset.split_by line takes them apart",
            where="trainer.batches, dataset.split_by",
            mend="trainer.batches=lines, or dataset.split_by=document",
        )


def _check_widths(config: Config) -> Iterator[NanolmError]:
    if not isinstance(config.model, TransformerConfig):
        return
    size = config.size
    if size.d_model % size.n_heads:
        divisors = [n for n in range(1, size.d_model + 1) if size.d_model % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - size.n_heads))[:3])
        yield SettingsError(
            f"size.d_model {size.d_model} cannot be divided among size.n_heads {size.n_heads} heads",
            where="size.d_model, size.n_heads",
            mend=f"near by and possible: n_heads = {', '.join(map(str, near))}, "
            f"or d_model = {size.d_model // size.n_heads * size.n_heads + size.n_heads}",
        )
    elif config.model.positions is Positions.rotary and (size.d_model // size.n_heads) % 2:
        yield SettingsError(
            f"rotary positions turn pairs, and a head is {size.d_model // size.n_heads} wide, an odd number",
            where="model.positions, size.d_model, size.n_heads",
            mend="choose size.d_model / size.n_heads even, or model.positions=learned",
        )


def _check_masks(config: Config) -> Iterator[NanolmError]:
    pattern, n_layers = config.mask.pattern, config.size.n_layers
    if pattern is not None or isinstance(config.mask, PatternConfig):
        wrong = list(_wrong_in_pattern(pattern))
        names = _pattern_names(config.mask) if isinstance(pattern, str | list) else []
        if names and n_layers % len(names):
            divisors = [str(n) for n in range(1, n_layers + 1) if n_layers % n == 0]
            wrong.append(
                SettingsError(
                    f"mask.pattern has {len(names)} masks, which size.n_layers {n_layers} layers cannot take in turn",
                    where="mask.pattern, size.n_layers",
                    mend=f"its length must divide the layers: {', '.join(divisors)}",
                )
            )
        yield from wrong
        if wrong:
            return
    context_length = config.size.context_length
    for mask, _ in layers_by_mask(config):
        for key, field, value in leaves(mask):
            if value == MISSING:
                yield SettingsError(
                    f"the mask {mask.name!r} of the pattern needs a value for {key}",
                    where="mask.pattern",
                    mend=f"mask={mask.name} mask.{key}=... with the pattern beside it",
                )
            elif field.metadata.get("in_context") and value > context_length:
                has_it = hasattr(config.mask, key)
                yield SettingsError(
                    f"mask.{key} {value}{'' if has_it else f', as {mask.name} has it,'} is longer than "
                    f"size.context_length {context_length}",
                    where=f"mask.{key}, size.context_length" if has_it else "mask.pattern, size.context_length",
                    mend=f"{'' if has_it else 'mask=pattern '}mask.{key}=N with N from 1 to {context_length}",
                )


def _wrong_in_pattern(pattern: Any) -> Iterator[NanolmError]:
    """What is no mask in it."""
    known = sorted({*MASKS.schemas, *MASKS} - {PatternConfig.name})
    letters = " and ".join(f"{letter} for {name}" for letter, name in PATTERN_LETTERS.items())
    if not isinstance(pattern, str | list) or not pattern:
        yield SettingsError(
            f"mask.pattern is {pattern!r}",
            where="mask.pattern",
            mend=f"a list of masks, [causal,banded_causal], or {letters}, as in SSSL",
        )
    elif isinstance(pattern, str):
        strange = sorted(set(pattern) - set(PATTERN_LETTERS))
        if strange:
            yield SettingsError(
                f"mask.pattern is {pattern!r}, and no mask has the letter {', '.join(strange)}",
                where="mask.pattern",
                mend=f"{letters}; masks by name go in a list, [causal,banded_causal]",
            )
    else:
        for name in pattern:
            if name not in known:
                yield SettingsError(f"no mask is called {name!r}", where="mask.pattern", mend=nearest(str(name), known))


def _check_batch(config: Config) -> Iterator[NanolmError]:
    trainer = config.trainer
    if trainer.batch_size % trainer.accumulate:
        yield SettingsError(
            f"trainer.batch_size {trainer.batch_size} cannot be cut into trainer.accumulate "
            f"{trainer.accumulate} equal parts",
            where="trainer.batch_size, trainer.accumulate",
            mend="batch_size counts all the sequences of an update; accumulate must divide it",
        )


def _check_warmup(config: Config) -> Iterator[NanolmError]:
    warmup, steps = config.scheduler.warmup_steps, config.trainer.max_steps
    if warmup is not None and warmup >= steps:
        yield SettingsError(
            f"scheduler.warmup_steps {warmup} leaves nothing of trainer.max_steps {steps}",
            where="scheduler.warmup_steps, trainer.max_steps",
            mend="a tenth of max_steps or less is usual; null takes a twentieth",
        )


def _check_device(config: Config) -> Iterator[NanolmError]:
    kind, _, index = config.trainer.device.partition(":")
    if kind not in ("auto", "cpu", "mps", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        yield SettingsError(
            f"trainer.device is {config.trainer.device!r}",
            where="trainer.device",
            mend="one of: auto, cpu, mps, cuda, cuda:0, cuda:1, ...",
        )
    if config.trainer.precision is Precision.fp16 and kind == "cpu":
        yield SettingsError(
            "trainer.precision fp16 on a CPU is slower than fp32 and less exact",
            where="trainer.precision, trainer.device",
            mend="trainer.precision=bf16 or fp32",
        )
