"""A run as a Python object."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from nanolm.errors import NanolmError, SettingsError, nearest, raise_all
from nanolm.runs.directory import RunDirectory, display_path
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.summary import Summary
from nanolm.wording import short_number

if TYPE_CHECKING:
    from torch import nn

    from nanolm.config.run import Config
    from nanolm.data.tokenizers import Tokenizer
    from nanolm.inference.activations import Activations
    from nanolm.inference.engine import Engine
    from nanolm.inference.evaluate import Evaluation
    from nanolm.inference.load import Loaded
    from nanolm.inference.settings import GenerationSettings
    from nanolm.interop.export import Exported

# Choices of `load`, without importing torch.
WEIGHTS = ("trained", "ema")
DTYPES = ("float32", "bfloat16", "int8")

AnyPath = str | os.PathLike[str]


class GenerationOptions(TypedDict, total=False):
    """Settings of text generation, by name; their defaults are in `nanolm.inference.settings.GenerationSettings`."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    ignore_eos: bool
    stride: int | None
    use_cache: bool


class Run:
    """A run directory, with the model of one of its checkpoints.

    Nothing in the directory is executed. The model is loaded when it is first used; `summary` and `metrics()` read
    what is on disk now, also of a run that is still training.

    Attributes:
        path: the run directory, absolute.
    """

    def __init__(
        self,
        path: AnyPath,
        *,
        checkpoint: str | int = "best",
        weights: str = "trained",
        dtype: str = "float32",
        device: str = "auto",
        plugins: Sequence[str] = (),
    ) -> None:
        """Open a run; arguments and errors are those of `nanolm.load`."""
        self._directory = RunDirectory(Path(os.path.abspath(RunDirectory(path).path))).require()  # noqa: PTH100
        self.path = self._directory.path
        problems = [
            SettingsError(f"there is no {name} {value!r}", where=name, hint=nearest(value, known))
            for name, value, known in (("weights", weights, WEIGHTS), ("dtype", dtype, DTYPES))
            if value not in known
        ]
        raise_all(problems)
        self._checkpoint, self._weights, self._dtype = checkpoint, weights, dtype
        self._device, self._plugins = device, tuple(plugins)

    @property
    def config(self) -> Config:
        """The settings, typed: `run.config.optimizer.lr`.

        Raises:
            NanolmError: config.yaml is damaged, or needs plugins that were not named.
        """
        from nanolm.compose import import_plugins
        from nanolm.config.yaml_io import load_yaml

        import_plugins(self._plugins)
        return load_yaml(self._directory.config)

    @property
    def summary(self) -> Summary:
        """The contents of summary.json: status, losses, provenance (`nanolm.runs.summary.Summary`).

        Raises:
            RunError: it is damaged.
        """
        return self._directory.read_summary()

    def metrics(self, split: str | None = None) -> Any:
        """Return the rows of metrics.jsonl: a pandas DataFrame, or a list of dicts where pandas is not installed.

        Columns are those of `nanolm.runs.metrics.MetricsRow` that have a value, and `weight_norms.NAME` and
        `grad_norms.NAME` for each module (trainer.log_norms).

        Args:
            split: "train" or "val"; None for both.

        Raises:
            RunError: a row is damaged.
        """
        rows = [_flat(row) for row in self._directory.iter_metrics(split)]
        if importlib.util.find_spec("pandas") is None:
            return rows
        import pandas

        return pandas.DataFrame(rows)

    @functools.cached_property
    def _loaded(self) -> Loaded:
        from nanolm.inference.load import load_run
        from nanolm.inference.weight_formats import WeightFormat

        return load_run(
            str(self.path),
            str(self._checkpoint),
            self._device,
            self._plugins,
            self._weights,
            WeightFormat(self._dtype),
        )

    @property
    def model(self) -> nn.Module:
        """The model, in evaluation mode and without gradients: `run.model(tokens_BxT)` gives logits_BxTxV.

        Raises:
            RunError: the run has no checkpoint yet.
            CheckpointError: the checkpoint is damaged.
        """
        return self._loaded.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: `encode(text)` gives an array of ids, `decode(ids)` a text."""
        return self._loaded.tokenizer

    @property
    def step(self) -> int:
        """The optimizer steps after which the model was saved."""
        return self._loaded.step

    @functools.cached_property
    def engine(self) -> Engine:
        """The generation engine, whose tokens carry probabilities and alternatives (`nanolm.inference.engine`)."""
        from nanolm.inference.engine import Engine

        return Engine.of(self._loaded)

    @overload
    def generate(self, prompt: str, **settings: Unpack[GenerationOptions]) -> str: ...

    @overload
    def generate(
        self, prompt: str | Sequence[str], *, samples: int, **settings: Unpack[GenerationOptions]
    ) -> list[str]: ...

    @overload
    def generate(self, prompt: list[str] | tuple[str, ...], **settings: Unpack[GenerationOptions]) -> list[str]: ...

    def generate(
        self, prompt: str | Sequence[str], *, samples: int | None = None, **settings: Unpack[GenerationOptions]
    ) -> str | list[str]:
        """Return the prompt and its continuation.

        Args:
            prompt: a text, or several of any lengths, which are continued as one batch. An empty one starts from the
                end-of-text token or a line end.
            samples: number of texts for each prompt, with consecutive seeds.
            settings: as for `nanolm generate`: see `GenerationOptions`.

        Returns:
            The text; a list of texts for several prompts, or if `samples` is given.

        Raises:
            SettingsError: a setting is out of range.
            TokenizerError: the prompt has characters that are not in the vocabulary.
        """
        found = self.engine.generate(prompt, _settings(settings), 1 if samples is None else samples)
        texts = [
            (self.tokenizer.decode(each.prompt.tokens) if each.prompt.start is None else "") + each.text
            for each in found
        ]
        return texts[0] if samples is None and isinstance(prompt, str) else texts

    def stream(self, prompt: str, **settings: Unpack[GenerationOptions]) -> Iterator[str]:
        """Yield the continuation of a prompt as it is written, in pieces of complete characters.

        Arguments and errors are those of `generate`. `engine.stream` yields the tokens themselves.
        """
        return (token.text for token in self.engine.stream(prompt, _settings(settings)) if token.text)

    def evaluate(
        self, split: str = "val", *overrides: str, stride: int | None = None, download: bool = False
    ) -> Evaluation:
        """Compute the exact loss on a split: every token is scored once, in order.

        Args:
            split: "train", "val", or "test" if the dataset has one.
            overrides: settings of the dataset that choose another text, such as "dataset=tiny_shakespeare".
            stride: tokens scored per window; a smaller one gives each token more context. None: the context length.
            download: whether to download the text from the address in the run's settings, if it is not in the cache.

        Raises:
            SettingsError: there is no such split, or the stride is larger than the context.
            RunError: the text has changed since the run was trained, or would have to be downloaded.
        """
        from nanolm.api.surroundings import unchanged
        from nanolm.inference.evaluate import chosen_dataset, evaluate

        with unchanged():
            dataset = chosen_dataset(self.path, overrides)
        return evaluate(self._loaded, split, stride, download, dataset)

    def activations(self, text: str, layers: Sequence[int] | None = None) -> Activations:
        """Return the named tensors of a forward pass over a text; see `nanolm.inference.activations`.

        Args:
            text: at most as many tokens as the context has.
            layers: counted from 0; None for all.

        Raises:
            SettingsError: there is no such layer, or the text has no tokens or too many.
            TokenizerError: the text has characters that are not in the vocabulary.
        """
        from nanolm.inference.activations import activations

        return activations(self._loaded, text, layers)

    def resume(self, *overrides: str, quiet: bool = False, **trainer: object) -> Run:
        """Train further in the same directory, from the latest checkpoint, and return the run.

        Args:
            overrides: settings that may change on resume, such as "trainer.eval_every=100".
            quiet: write messages to train.log only.
            trainer: settings of the trainer, such as max_steps=2000.

        Raises:
            NanolmError: as `nanolm.train` with "resume=RUN".
        """
        return self._continue("", overrides, quiet, trainer)

    def fork(self, *overrides: str, quiet: bool = False, **trainer: object) -> Run:
        """Start a new run from the latest checkpoint, with any settings changed, and return the new run.

        Arguments and errors are those of `resume`; "hydra.run.dir=FOLDER" chooses the new directory.
        """
        return self._continue("fork=true", overrides, quiet, trainer)

    def _continue(self, fork: str, overrides: Sequence[str], quiet: bool, trainer: dict[str, object]) -> Run:
        from nanolm.api.training import train
        from nanolm.compose import format_override

        words = [f"resume={format_override(str(self.path))}", *([fork] if fork else [])]
        words += [f"plugins={format_override(self._plugins)}"] if self._plugins else []
        found = train(*words, *overrides, config_dir=None, quiet=quiet, **trainer)
        # The best checkpoint may be another one now.
        self.__dict__.pop("_loaded", None)
        self.__dict__.pop("engine", None)
        return Run(found.path, weights=self._weights, dtype=self._dtype, device=self._device, plugins=self._plugins)

    def export(self, folder: AnyPath, *, format: str = "huggingface", dtype: str = "float32") -> Exported:
        """Write the model as a folder that other programs open; see `nanolm.export`."""
        from nanolm.interop.export import export

        return export(
            self.path,
            folder,
            format=format,
            checkpoint=self._checkpoint,
            weights=self._weights,
            dtype=dtype,
            plugins=self._plugins,
        )

    def __fspath__(self) -> str:
        """Return the path, so that a run can be given wherever a path can."""
        return str(self.path)

    def __repr__(self) -> str:
        """Return the path, what was trained, and the result."""
        return f"Run({str(display_path(self.path))!r}: {self._describe()})"

    def _repr_html_(self) -> str:
        """Return a card with the loss curve, for notebooks."""
        from nanolm.api.card import card

        return card(self._directory, self._describe())

    def _describe(self) -> str:
        try:
            summary = self.summary
        except NanolmError as error:
            return error.found
        chosen = summary.choices
        parts = [f"{chosen.get('model', 'model')} {chosen.get('size', '')}".strip()]
        if summary.parameters is not None:
            parts[0] += f" ({short_number(summary.parameters)} parameters)"
        parts[0] += f" on {chosen['dataset']}" if "dataset" in chosen else ""
        parts.append(f"{summary.status or 'not started'} at step {summary.steps_done:,}")
        if summary.best_val_loss is not None:
            parts.append(f"val loss {summary.best_val_loss:.4f}")
        if summary.bits_per_byte is not None:
            parts.append(f"{summary.bits_per_byte:.4f} bits per byte")
        return ", ".join(parts)


def load(
    path: AnyPath,
    *,
    checkpoint: str | int = "best",
    weights: str = "trained",
    dtype: str = "float32",
    device: str = "auto",
    plugins: Sequence[str] = (),
) -> Run:
    """Open a run directory.

    Args:
        path: a directory written by `nanolm train`.
        checkpoint: "best" (lowest validation loss), "last", or a step.
        weights: "trained", or "ema" for their exponential moving average (trainer.ema_decay).
        dtype: number format of the weights: "float32", "bfloat16" or "int8".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        plugins: your own modules that the run was made with. They are imported; no others are.

    Raises:
        RunError: the directory is not a run.
        SettingsError: there are no such weights, or there is no such number format.

    Example:
        >>> path = nanolm.train("model=bigram", "logger=none", max_steps=20, quiet=True).path
        >>> run = nanolm.load(path, checkpoint="last")
        >>> run.step
        20
        >>> len(run.generate("The", max_new_tokens=10))
        13
    """
    return Run(path, checkpoint=checkpoint, weights=weights, dtype=dtype, device=device, plugins=plugins)


def _settings(options: GenerationOptions) -> GenerationSettings:
    """Return checked settings.

    Raises:
        SettingsError: a name is unknown.
    """
    from nanolm.inference.settings import GenerationSettings

    known = GenerationOptions.__annotations__
    problems = [
        SettingsError(f"there is no setting {name!r} of generation", where=name, hint=nearest(name, known))
        for name in options
        if name not in known
    ]
    raise_all(problems)
    stop = options.get("stop", ())
    values: dict[str, Any] = {**options, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    return GenerationSettings(**values)


def _flat(row: MetricsRow) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in dataclasses.asdict(row).items():
        if isinstance(value, dict):
            values |= {f"{name}.{module}": norm for module, norm in value.items()}
        elif value is not None:
            values[name] = value
    return values
