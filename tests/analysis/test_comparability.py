from nanolm.analysis.comparability import incomparable
from nanolm.runs.summary import Summary

GPT = {"model": "gpt", "dataset": "tiny_shakespeare", "tokenizer": "char", "size": "small"}


def test_incomparable_ignores_runs_that_never_started() -> None:
    future, past, lossy = (
        Summary(tokenizer="t", is_noncausal=True),
        Summary(tokenizer="t"),
        Summary(tokenizer="w", lossless=False),
    )
    assert incomparable([future, past, Summary()]) == [True, False, False]
    assert incomparable([lossy, past]) == [True, False]
    assert incomparable([future, future, Summary()]) == [False, False, False]
    assert incomparable([lossy, lossy, Summary()]) == [False, False, False]
