"""Check the settings of the dataset."""

from __future__ import annotations

from collections.abc import Iterator

from nanolm.config.dataset import CONTENT, InstructionsConfig, SplitBy
from nanolm.config.fields import leaves
from nanolm.config.run import Config
from nanolm.config.trainer import Sampling
from nanolm.errors import NanolmError, SettingsError

# Settings that must not be empty strings.
NOT_BLANK = (
    *("path", "val_path", "test_path", "train_split", "val_split", "test_split", "subset", "url"),
    *("prompt_field", "response_field", "messages_field"),
)


def check_dataset(config: Config) -> Iterator[NanolmError]:
    """Find empty names, splits without training text, and a split that does not suit the sampling."""
    dataset = config.dataset
    for name in NOT_BLANK:
        value = getattr(dataset, name, None)
        if isinstance(value, str) and not value.strip():
            key = f"dataset.{name}"
            example = "use dataset.path=. for the current directory" if name == "path" else f"or leave out {key}"
            yield SettingsError(f"{key} is empty", where=key, hint=f"is a shell variable unset? {example}")
    if dataset.val_fraction + dataset.test_fraction >= 1:
        yield SettingsError(
            f"dataset.val_fraction ({dataset.val_fraction}) and dataset.test_fraction ({dataset.test_fraction}) leave "
            "no training text",
            where="dataset.val_fraction, dataset.test_fraction",
            hint="their sum must be less than 1, for example 0.1 and 0.1",
        )
    if isinstance(dataset, InstructionsConfig):
        yield from _check_instructions(config, dataset)
    elif config.trainer.sampling is Sampling.documents and dataset.split_by is SplitBy.line:
        yield SettingsError(
            "trainer.sampling=documents needs whole documents, but dataset.split_by=line splits them",
            where="trainer.sampling, dataset.split_by",
            hint="use trainer.sampling=lines or dataset.split_by=document",
        )


def _check_instructions(config: Config, dataset: InstructionsConfig) -> Iterator[NanolmError]:
    """Find a template without the message or without an end, lines as units, and one name for two fields."""
    for key, field, template in leaves(dataset.template, "dataset.template."):
        example = f"in bash, for example: $'{key}=\"{repr(field.default)[1:-1]}\"'"
        if template.count(CONTENT) != 1:
            found = f"{key} has {CONTENT} {template.count(CONTENT)} times, and needs it once: {template!r}"
            yield SettingsError(found, where=key, hint=example)
        elif key.endswith("assistant") and not template.partition(CONTENT)[2]:
            found = f"{key} has nothing after {CONTENT}, so no response would have an end: {template!r}"
            yield SettingsError(found, where=key, hint=example)
        if "\\n" in template:
            found = f"{key} has a backslash and an n, not a line end: {template!r}"
            yield SettingsError(found, where=key, hint=example)
    names = [dataset.prompt_field, dataset.response_field, dataset.messages_field]
    if len(set(names)) < len(names):
        yield SettingsError(
            f"two of the fields of dataset=instructions have the same name: {', '.join(names)}",
            where="dataset.prompt_field, dataset.response_field, dataset.messages_field",
            hint="use different names",
        )
    if config.trainer.sampling is Sampling.lines:
        yield SettingsError(
            "trainer.sampling=lines would separate the lines of a conversation",
            where="trainer.sampling",
            hint="use trainer.sampling=documents for one conversation per row, or windows",
        )
    if dataset.split_by is SplitBy.line:
        yield SettingsError(
            "dataset.split_by=line would separate the lines of a conversation",
            where="dataset.split_by",
            hint="use dataset.split_by=document",
        )
