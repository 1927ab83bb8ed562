import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nanolm.data.batches import windows

TOKENS = np.arange(500, dtype=np.uint16)


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**9), st.integers(1, 8), st.integers(1, 40))
def test_targets_follow_inputs(seed: int, step: int, batch_size: int, context_length: int) -> None:
    inputs, targets = windows(TOKENS, seed=seed, step=step, batch_size=batch_size, context_length=context_length)
    assert inputs.shape == targets.shape == (batch_size, context_length)
    assert inputs.dtype == targets.dtype == np.int64
    assert (targets == inputs + 1).all()
    again, _ = windows(TOKENS, seed=seed, step=step, batch_size=batch_size, context_length=context_length)
    assert (again == inputs).all()


def test_steps_and_seeds_differ() -> None:
    starts = {
        (seed, step): tuple(windows(TOKENS, seed=seed, step=step, batch_size=8, context_length=8)[0][:, 0])
        for seed in range(3)
        for step in range(50)
    }
    assert len(set(starts.values())) == len(starts)


def test_every_position_is_drawn_alike_and_none_beyond_the_end() -> None:
    counts = np.zeros(len(TOKENS), dtype=int)
    for step in range(400):
        inputs, _ = windows(TOKENS, seed=0, step=step, batch_size=64, context_length=20)
        counts += np.bincount(inputs[:, 0], minlength=len(TOKENS))
    assert counts[480:].sum() == 0
    # 25,600 draws over 480 positions: 53 each, standard deviation 7.3; 6 of them is beyond chance.
    assert abs(counts[:480] - 53.3).max() < 6 * 7.3


def test_a_text_of_one_window_has_one_batch() -> None:
    inputs, targets = windows(np.arange(9), seed=1, step=1, batch_size=3, context_length=8)
    assert (inputs == np.arange(8)).all()
    assert (targets == np.arange(1, 9)).all()
