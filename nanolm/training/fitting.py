"""Training of models that are fitted in one pass, such as n-gram models."""

from __future__ import annotations

import time
from collections.abc import Generator

import torch

from nanolm.model.build import FittedModel
from nanolm.runs.metrics import TRAIN, MetricsRow
from nanolm.training.evaluation import evaluate, split_loss
from nanolm.training.results import StepResult
from nanolm.training.session import Session
from nanolm.training.step import Step


def fit(session: Session, began: float) -> Generator[Step, bool | None, str]:
    """Fit a model in one pass over the training tokens, which is its only step, and return the sample.

    Both losses are exact. The settings of the optimizer, the scheduler and the batches have no effect. There is no
    checkpoint before the end: a run that is killed is fitted again.
    """
    setup, log = session.setup, session.log
    state = setup.state
    if state.step:
        return ""
    assert isinstance(state.model, FittedModel), "a trained model has steps"
    log.start_bar(1, 0)
    tokens = setup.streams["train"].tokens
    start = time.perf_counter()
    state.entries = state.model.fit(tokens)
    state.timed_seconds = time.perf_counter() - start
    state.tokens = state.timed_tokens = len(tokens)
    state.step = 1
    log.advance()
    loss = split_loss(setup, "train")
    yield Step(state.step, 0.0, state.model, [], StepResult(torch.tensor([loss, 0.0], dtype=torch.float64)))
    state.seconds = time.perf_counter() - began
    log.row(
        MetricsRow(
            step=state.step,
            split=TRAIN,
            loss=loss,
            tokens=state.tokens,
            seconds=round(state.seconds, 3),
            tokens_per_second=round(state.timed_tokens / state.timed_seconds, 1),
        )
    )
    _, text = evaluate(session, began)
    state.seconds = time.perf_counter() - began
    session.save()
    return text
