"""Corpora: text from a dataset source, as documents that are divided into splits.

A dataset builder is a function of its settings that yields the documents of a corpus: strings, or Parts of a document
of several megabytes, so that a long text is never in memory at once. A builder that returns a string has one document.
It is called for every pass over the corpus, and must yield the same documents every time.

Documents are joined with line ends: each document but the last gets one line end appended. Empty documents are skipped.
Every character is kept, NUL included, but a text with many NULs is refused.
"""

from nanolm.data.corpus import huggingface as huggingface  # registers the built-in datasets
from nanolm.data.corpus import instructions as instructions
from nanolm.data.corpus import sources as sources
from nanolm.data.corpus.loading import Corpus, load
from nanolm.data.corpus.reading import Part, read_utf8
from nanolm.data.corpus.splits import Piece, split_settings

__all__ = ["Corpus", "Part", "Piece", "load", "read_utf8", "split_settings"]
