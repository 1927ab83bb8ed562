from pathlib import Path

import pytest

from nanolm.run_layout import checkpoint_step, checkpoints_by_step


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-00000100", 100),
        ("step-7", 7),
        ("step-", None),
        ("step-x", None),
        ("step-²", None),
        ("step-00000004.replaced-1", None),
        ("00000100", None),
    ],
)
def test_checkpoint_step_is_read_from_the_name(name: str, step: int | None) -> None:
    assert checkpoint_step(name) == step


def test_checkpoints_are_listed_in_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("step-99999999", "step-100000000", "step-00000003", "step-00000004.replaced-1", ".step-5.1.tmp"):
        (tmp_path / name).mkdir()
    assert list(checkpoints_by_step(tmp_path)) == [3, 99_999_999, 100_000_000]
    assert checkpoints_by_step(tmp_path / "nowhere") == {}
