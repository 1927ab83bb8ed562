"""Turn the budget of a run into a number of steps."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from fractions import Fraction

from nanolm.config.batch_schedule import Stage, stages, with_stage
from nanolm.config.budget import MAX_MINUTES, MAX_STEPS, Budget, budget_of, format_amount
from nanolm.config.dataset import InstructionsConfig
from nanolm.config.model import NgramConfig
from nanolm.config.run import Config
from nanolm.config.trainer import Sampling
from nanolm.errors import SettingsError
from nanolm.model import count
from nanolm.model.parameters import n_parameters

if typing.TYPE_CHECKING:
    from nanolm.data.tokens.stream import Stream

# The steps of a run are counted in 64 bits, and its tokens too.
MOST_STEPS = 2**48

# Units of the budgets, for messages.
UNITS = {"max_tokens": "tokens", "max_epochs": "epochs", "max_flops": "FLOPs", "tokens_per_parameter": "tokens"}


def needs_text(config: Config) -> bool:
    """Return whether the number of steps depends on the train split."""
    name = budget_of(config.trainer).name
    if name == MAX_MINUTES:
        return False
    has_unscored_tokens = config.trainer.sampling.in_rows or isinstance(config.dataset, InstructionsConfig)
    return name == "max_epochs" or (name != MAX_STEPS and has_unscored_tokens)


def needs_vocabulary(config: Config) -> bool:
    """Return whether the number of steps depends on the size of the vocabulary."""
    return budget_of(config.trainer).name in ("max_flops", "tokens_per_parameter")


def in_steps(config: Config, train: Stream | None, vocab_size: int | None) -> Config:
    """Return the settings with trainer.max_steps: the largest number of steps that stays within the budget.

    Args:
        train: the train split; None if the budget does not depend on it (`needs_text`).
        vocab_size: None if the budget does not depend on it (`needs_vocabulary`).

    Raises:
        SettingsError: the budget is less than one step, or has no formula.
    """
    budget = budget_of(config.trainer)
    if budget.in_steps:
        return config
    if config.model.name == NgramConfig.name:
        # It is fitted in one pass, whatever the budget.
        return with_steps(config, 1)
    if budget.name == MAX_MINUTES:
        raise SettingsError(
            f"{budget} is turned into steps when the speed of training is measured",
            where="trainer.max_minutes",
            hint="`nanolm train ... dry_run=true` measures it and prints the number of steps",
        )
    amount = Fraction(repr(budget.value))
    if budget.name == "tokens_per_parameter":
        assert vocab_size is not None
        amount *= n_parameters(config, vocab_size)
    costs = _costs(config, budget, train, vocab_size)
    n_steps = steps_within(config, costs, amount)
    if not n_steps:
        one_step = cost_of(config, costs, 1)
        raise _too_small(config, budget, one_step, one_step / amount)
    return with_steps(config, n_steps)


def read_steps(config: Config, vocab_size: int | None = None) -> Config:
    """As `in_steps`, and read the text and fit the tokenizer if the budget depends on them.

    Args:
        vocab_size: None takes that of the tokenizer.

    Raises:
        NanolmError: as `in_steps`, or the text cannot be read.
    """
    if not (needs_text(config) or (vocab_size is None and needs_vocabulary(config))):
        return in_steps(config, None, vocab_size)
    # `nanolm count` reads no text, and starts without NumPy.
    from nanolm.data import corpus as corpora
    from nanolm.data.tokens import cache as token_cache

    corpus = corpora.load(config.dataset)
    tokenizer = token_cache.fit_tokenizer(corpus, config)
    train = token_cache.tokenize(corpus, tokenizer, config)["train"]
    return in_steps(config, train, vocab_size or tokenizer.vocab_size)


def with_steps(config: Config, n_steps: int) -> Config:
    """Return the settings of a run with a number of steps, and with its budget."""
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, max_steps=n_steps))


def steps_within(config: Config, costs: Mapping[int, Fraction], amount: Fraction) -> int:
    """Return the largest number of steps whose cost is at most an amount; 0 if one step costs more.

    The stages of the batch schedules end at fractions of the steps, whatever their number.

    Args:
        costs: of a sequence, by its context length.
    """
    low, high = 0, 1
    while high < MOST_STEPS and cost_of(config, costs, high) <= amount:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost_of(config, costs, middle) <= amount else (low, middle)
    return low


def cost_of(config: Config, costs: Mapping[int, Fraction], n_steps: int) -> Fraction:
    """Return the cost of a run of a number of steps."""
    return sum((_n_sequences(stage) * costs[stage.context_length] for stage in _stages(config, n_steps)), Fraction(0))


def _stages(config: Config, n_steps: int) -> tuple[Stage, ...]:
    return stages(with_steps(config, n_steps))


def _n_sequences(stage: Stage) -> int:
    return (stage.end - stage.start) * stage.batch_size


def _costs(config: Config, budget: Budget, train: Stream | None, vocab_size: int | None) -> dict[int, Fraction]:
    """Return the cost of a sequence in units of the budget, by its context length."""
    lengths = {config.size.context_length, *(length for _, length in config.trainer.context_length_schedule)}
    if budget.name == "max_epochs":
        assert train is not None
        return {length: _epochs(config, train, length) for length in lengths}
    tokens = {length: _scored_tokens(train, length) for length in lengths}
    if budget.name != "max_flops":
        return tokens
    assert vocab_size is not None
    by_length = {
        length: count.training_flops_per_token(with_stage(config, Stage(0, 1, 1, length)), vocab_size)
        for length in lengths
    }
    flops = {length: amount for length, amount in by_length.items() if amount}
    if len(flops) < len(by_length):
        raise SettingsError(
            f"there is no formula for the FLOPs of model={config.model.name}",
            where="trainer.max_flops",
            hint="use another budget, such as trainer.max_tokens",
        )
    return {length: tokens[length] * flops[length] for length in lengths}


def _scored_tokens(train: Stream | None, context_length: int) -> Fraction:
    """Return the scored tokens of a sequence: the mean over the split if it has padding or prompts."""
    if train is None:
        return Fraction(context_length)
    if train.rows is not None:
        rows = train.rows.split_at(context_length)
        return Fraction(rows.n_targets, max(len(rows), 1))
    if train.scored is not None:
        return Fraction(context_length * train.scored_tokens, len(train.tokens))
    return Fraction(context_length)


def _epochs(config: Config, train: Stream, context_length: int) -> Fraction:
    """Return the share of an epoch that one sequence is."""
    if train.rows is not None:
        return Fraction(1, max(len(train.rows.split_at(context_length)), 1))
    if config.trainer.sampling is Sampling.epochs:
        return Fraction(1, max((len(train.tokens) - 1) // context_length, 1))
    return Fraction(context_length, len(train.tokens))


def _too_small(config: Config, budget: Budget, one_step: Fraction, ratio: Fraction) -> SettingsError:
    unit, stage = UNITS[budget.name], stages(with_steps(config, 1))[-1]
    needed = format_amount(_round_up(float(ratio * Fraction(repr(budget.value)))))
    amount = f"{float(one_step):,.0f}" if one_step >= 1 else f"{float(one_step):.3g}"
    return SettingsError(
        f"{budget} is less than one step, which has {amount} {unit} "
        f"({stage.batch_size:,} sequences of {stage.context_length:,} tokens)",
        where=f"trainer.{budget.name}",
        hint=f"trainer.{budget.name}={needed} or more, or smaller batches: trainer.batch_size",
    )


def _round_up(value: float) -> float:
    """Round up to three digits, or to an integer from 100 on."""
    if value >= 100:
        return float(-(-value // 1))
    rounded = float(f"{value:.3g}")
    return rounded if rounded >= value else float(f"{value * 1.01:.3g}")


def describe_steps(config: Config, train_tokens: int | None = None) -> str:
    """Describe a budget that has been turned into steps: "trainer.max_tokens=5000000: 4,882 steps, 2 epochs".

    Args:
        train_tokens: of the train split; None leaves the epochs out.
    """
    return ", ".join(_parts(config, train_tokens))


def _parts(config: Config, train_tokens: int | None) -> Iterator[str]:
    n_steps = config.trainer.steps
    yield f"{budget_of(config.trainer)}: {n_steps:,} step{'s' * (n_steps != 1)}"
    tokens = sum(_n_sequences(stage) * stage.context_length for stage in stages(config))
    yield f"{tokens:,} tokens" + (" with padding" if config.trainer.sampling.in_rows else "")
    if train_tokens:
        yield f"{tokens / train_tokens:.3g} times the train split"
