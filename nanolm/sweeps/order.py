"""The order in which the jobs of a sweep are started: sweep.order."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence

from nanolm.config.batch_schedule import total_tokens
from nanolm.config.budget import MAX_MINUTES, budget_of
from nanolm.config.model import NgramConfig
from nanolm.config.run import Config
from nanolm.errors import NanolmError, SettingsError, nearest
from nanolm.model.budget import read_steps
from nanolm.model.count import mean_flops_per_token
from nanolm.model.totals import known_vocab_size
from nanolm.sweeps.planning import Job


class Order(enum.Enum):
    """The order of jobs."""

    given = "given"
    longest_first = "longest_first"
    by_seed = "by_seed"


def check_order(name: str) -> Iterator[NanolmError]:
    """Refuse a name of no order."""
    names = [order.value for order in Order]
    if name not in names:
        yield SettingsError(f"unknown order {name!r}", where="sweep.order", hint=nearest(name, names))


def in_order(jobs: Sequence[Job], order: Order) -> list[Job]:
    """Sort jobs; those that the order does not distinguish stay as given.

    longest_first sorts by the training FLOPs that `nanolm count` shows. Jobs without such a number (a plugin's model, a
    budget in minutes, a text that cannot be read) are started before all others, the one with the most minutes first.
    """
    if order is Order.given:
        return list(jobs)
    if order is Order.by_seed:
        return sorted(jobs, key=lambda job: job.config.seed)
    vocab_sizes: dict[str, int | None] = {}

    def vocab_size_of(config: Config) -> int | None:
        text = f"{config.dataset} {config.tokenizer}"
        if text not in vocab_sizes:
            vocab_sizes[text] = known_vocab_size(config.tokenizer) or _fitted_vocab_size(config)
        return vocab_sizes[text]

    return sorted(jobs, key=lambda job: _length(job.config, vocab_size_of))


def training_cost(config: Config, vocab_size: int | None) -> tuple[int, int] | None:
    """Return the FLOPs and the tokens of a whole run; None if they are unknown before it is trained.

    A bigram table has no FLOPs, so that its runs are compared by their tokens.

    Args:
        vocab_size: None if the text cannot be read.
    """
    if config.model.name == NgramConfig.name:
        # It is counted in one pass, and not trained.
        return 0, 0
    if vocab_size is None or budget_of(config.trainer).name == MAX_MINUTES:
        return None
    try:
        config = read_steps(config, vocab_size)
        per_token = mean_flops_per_token(config, vocab_size)
    except NanolmError:
        # The job itself reports it.
        return None
    tokens = total_tokens(config)
    return None if per_token is None else (per_token * tokens, tokens)


def _length(config: Config, vocab_size_of: Callable[[Config], int | None]) -> tuple[bool, float, float]:
    """Return the key by which the longest job comes first."""
    cost, budget = training_cost(config, vocab_size_of(config)), budget_of(config.trainer)
    if cost is None:
        return False, -budget.value if budget.name == MAX_MINUTES else 0.0, 0.0
    return True, -cost[0], -cost[1]


def _fitted_vocab_size(config: Config) -> int | None:
    """Read the text and fit the tokenizer, as the jobs do, which then find it in the cache."""
    from nanolm.data import corpus as corpora
    from nanolm.data.tokens import cache as token_cache

    try:
        return token_cache.fit_tokenizer(corpora.load(config.dataset), config).vocab_size
    except NanolmError:
        return None
