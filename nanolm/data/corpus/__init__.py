"""Where text comes from: sources (sources.py), strict UTF-8 (reading.py) and splits (splits.py).

A corpus is a sequence of documents. A dataset builder is a function of its settings that yields the documents, each a
string, or a text of several megabytes as a sequence of Parts, so that a whole text is never held in memory; a builder
that returns a string has one document. It is called again for every pass over the corpus and must yield the same
documents every time.

Documents are joined with line ends: each document except the last of the corpus gets one line end appended. Empty
documents are skipped. Every character is kept, NUL included; text that consists of NULs to a good part is refused.
"""

from nanolm.data.corpus import sources as sources  # registers the built-in datasets
from nanolm.data.corpus.loading import Corpus, load
from nanolm.data.corpus.reading import Part, read_utf8
from nanolm.data.corpus.splits import Piece, split_settings

__all__ = ["Corpus", "Part", "Piece", "load", "read_utf8", "split_settings"]
