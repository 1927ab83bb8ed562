"""The dataset that the overrides of a command select."""

from __future__ import annotations

from argparse import Namespace

from nanolm import terminal
from nanolm.cli.arguments import compose
from nanolm.compose import ComposedCommand
from nanolm.data import corpus as corpora
from nanolm.data.corpus import Corpus
from nanolm.data.tokenizers import Tokenizer
from nanolm.data.tokens import cache as token_cache


def load_dataset(arguments: Namespace) -> tuple[ComposedCommand, Corpus, Tokenizer]:
    """Compose the overrides, load the text and fit the tokenizer.

    Raises:
        NanolmError: the settings have mistakes, or the text cannot be read.
    """
    line = compose(arguments)
    corpus = corpora.load(line.config.dataset)
    for note in corpus.notes:
        terminal.say(f"nanolm: {note}")
    return line, corpus, token_cache.fit_tokenizer(corpus, line.config)
