"""Check the settings of the dataset."""

from __future__ import annotations

from collections.abc import Iterator

from nanolm.config.dataset import SplitBy
from nanolm.config.run import Config
from nanolm.config.trainer import Sampling
from nanolm.errors import NanolmError, SettingsError

# Settings that must not be empty strings.
NOT_BLANK = ("path", "val_path", "test_path", "train_split", "val_split", "test_split", "subset", "url")


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
    if config.trainer.sampling is Sampling.documents and dataset.split_by is SplitBy.line:
        yield SettingsError(
            "trainer.sampling=documents needs whole documents, but dataset.split_by=line splits them",
            where="trainer.sampling, dataset.split_by",
            hint="use trainer.sampling=lines or dataset.split_by=document",
        )
