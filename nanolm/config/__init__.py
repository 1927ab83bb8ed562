"""The typed schema of every group of settings, a module each, their bounds, and the checks across them.

Defaults live here and nowhere else; a YAML file in configs/ says only what differs. Bounds stand beside the
default they belong to. Nothing here imports torch or hydra.
"""

# ruff: noqa: F401
from nanolm.config.check import (
    check,
)
from nanolm.config.dataset import (
    Bom,
    DatasetConfig,
    DownloadConfig,
    HuggingFaceConfig,
    JsonlConfig,
    Newlines,
    Nul,
    PythonDocsConfig,
    PythonStdlibConfig,
    SplitBy,
    TextConfig,
)
from nanolm.config.fields import (
    BOUNDS,
    bounded,
    in_context,
    leaves,
    outside_bounds,
)
from nanolm.config.logger import (
    LoggerConfig,
    NoLoggerConfig,
    WandbConfig,
    WandbMode,
)
from nanolm.config.mask import (
    PATTERN_LETTERS,
    BandedCausalConfig,
    BandedConfig,
    BlockLocalConfig,
    CausalConfig,
    DocumentConfig,
    MaskConfig,
    NoMaskConfig,
    PatternConfig,
    PrefixConfig,
    StridedConfig,
    WindowConfig,
)
from nanolm.config.model import (
    Activation,
    AttentionKind,
    BigramConfig,
    FeedForwardKind,
    Initialization,
    ModelConfig,
    NgramConfig,
    Norm,
    NormPlacement,
    Positions,
    Smoothing,
    TransformerConfig,
)
from nanolm.config.optimizer import (
    DECAYED_GROUPS,
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    LionConfig,
    LrMultipliers,
    MuonConfig,
    OptimizerConfig,
    ScheduleFreeConfig,
    SGDConfig,
)
from nanolm.config.run import (
    BASE_SCHEMAS,
    SINGLE_SCHEMAS,
    Config,
    changes_in_words,
    differing,
    flat,
    identity,
    layer_masks,
    layers_by_mask,
    may_change,
    reads_documents,
    recorded,
)
from nanolm.config.scheduler import (
    ChainConfig,
    ConstantConfig,
    CosineConfig,
    CosineRestartsConfig,
    ExponentialConfig,
    InverseSqrtConfig,
    LinearConfig,
    OneCycleConfig,
    PartsConfig,
    PlateauConfig,
    ProductConfig,
    SchedulerConfig,
    StepConfig,
    TrapezoidConfig,
    schedule_parts,
    warmup_of,
)
from nanolm.config.size import (
    SizeConfig,
)
from nanolm.config.tokenizer import (
    BpeConfig,
    ByteConfig,
    CharConfig,
    Gpt2Config,
    PretrainedConfig,
    SentencePieceConfig,
    SentencePieceModel,
    SpacyConfig,
    TokenizerConfig,
    TorchtextConfig,
    UnigramConfig,
    WordConfig,
    WordsConfig,
)
from nanolm.config.trainer import (
    AttentionPath,
    Batches,
    Parallel,
    Precision,
    TrainerConfig,
)
from nanolm.config.wandb_environment import Destination, check_wandb, destination
