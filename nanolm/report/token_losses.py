"""The loss of every token at the beginning of the validation text, for runs with the same tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nanolm.analysis.collection import Run
from nanolm.config.mask import reads_documents
from nanolm.data import corpus as corpora
from nanolm.data.download import only_if_asked
from nanolm.data.tokens.cache import tokenize
from nanolm.errors import NanolmError, RunError
from nanolm.inference.load import Loaded, load_run
from nanolm.inference.text_stream import text_decoder
from nanolm.training.validation import token_losses

# More tokens are not read on a page.
N_TOKENS = 600


@dataclasses.dataclass(frozen=True)
class RunLosses:
    """The losses of the best checkpoint of a run, by its name in the collection; in nats."""

    run: str
    step: int
    losses: list[float]


@dataclasses.dataclass(frozen=True)
class TokenLosses:
    """Runs scored on the same tokens.

    Attributes:
        tokens: the texts of the tokens.
        runs: at least two, best first; none if `problem` says why.
        problem: for the user; empty if there is none.
    """

    tokens: list[str] = dataclasses.field(default_factory=list)
    runs: list[RunLosses] = dataclasses.field(default_factory=list)
    problem: str = ""


def same_tokens(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with the same tokenizer and validation text as the first run that shares them with another."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.validation_text and run.summary.tokenizer:
            groups.setdefault((run.validation_text, run.summary.tokenizer), []).append(run)
    return next((group for group in groups.values() if len(group) > 1), [])


def compute(runs: Sequence[Run], n_runs: int, plugins: Sequence[str] = ()) -> TokenLosses:
    """Score the first tokens of the validation text with the best checkpoints of some runs, on the CPU.

    The text is not downloaded, and must be the one that the runs were trained on.

    Args:
        runs: those whose losses compare, best first.
        n_runs: the largest number of runs.
        plugins: the user's modules that the runs were made with.
    """
    candidates = same_tokens(runs)
    if not candidates:
        return TokenLosses(problem="no two of these runs have the same validation tokens and comparable losses")
    found: list[RunLosses] = []
    problems: dict[str, list[str]] = {}
    ids_N: np.ndarray | None = None
    tokens: list[str] = []
    for run in candidates:
        try:
            loaded = load_run(str(run.path), device="cpu", plugins=plugins)
            its_ids_N, losses_N = _score(loaded)
        except NanolmError as error:
            problems.setdefault(error.found, []).append(run.name)
            continue
        if ids_N is None:
            ids_N, tokens = its_ids_N, _texts(loaded, its_ids_N)
        if not np.array_equal(ids_N, its_ids_N):
            problems.setdefault("other tokens of the text are scored (trainer.sampling)", []).append(run.name)
            continue
        found.append(RunLosses(run.name, loaded.step, [round(loss, 4) for loss in losses_N.tolist()]))
        if len(found) == n_runs:
            break
    if len(found) > 1:
        return TokenLosses(tokens, found)
    return TokenLosses(problem="; ".join(f"{', '.join(names)}: {problem}" for problem, names in problems.items()))


def _texts(loaded: Loaded, ids_N: np.ndarray) -> list[str]:
    """Return the characters that each token completes; the last one has the rest."""
    decoder = text_decoder(loaded.tokenizer, [])
    texts = [decoder.add(token) for token in ids_N.tolist()]
    return [*texts[:-1], texts[-1] + decoder.finish()]


def _score(loaded: Loaded) -> tuple[np.ndarray, np.ndarray]:
    config = loaded.config
    with only_if_asked(option="nanolm evaluate RUN --download"):
        corpus = corpora.load(config.dataset)
    if corpus.fingerprint != loaded.run.read_summary().corpus:
        raise RunError("the text has changed since the run was trained", where=str(loaded.run.path))
    stream = tokenize(corpus, loaded.tokenizer, config)["val"]
    return token_losses(
        loaded.model,
        stream,
        N_TOKENS,
        context_length=config.size.context_length,
        vocab_size=loaded.tokenizer.vocab_size,
        device=loaded.device,
        reads_documents=reads_documents(config),
    )
