import pytest

from nanolm.errors import RankError
from nanolm.training.distributed.ranks import SINGLE_PROCESS, translate_rank_errors


def fail() -> None:
    raise KeyError("work")


def test_single_process_runs_everything_itself() -> None:
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.gather("a") == ["a"]
    assert (SINGLE_PROCESS.sum(1.5), SINGLE_PROCESS.max(-2)) == (1.5, -2)
    for run in (SINGLE_PROCESS.run_on_main, SINGLE_PROCESS.run_on_all, SINGLE_PROCESS.run_on_main_first):
        assert run(lambda: 3) == 3
        with pytest.raises(KeyError, match="work"):
            run(fail)


def test_collective_errors_name_the_command_to_resume() -> None:
    text = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:525] Connection closed by peer [127.0.0.1]:1. More"
    expected = r"lost the connection[\s\S]*Connection closed by peer[\s\S]*resume=outputs/a"
    with pytest.raises(RankError, match=expected), translate_rank_errors("outputs/a"):
        raise RuntimeError(text)
    with pytest.raises(RankError, match="the same command with resume=auto"), translate_rank_errors():
        raise RuntimeError(text)


def test_other_errors_are_unchanged() -> None:
    error = RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError) as caught, translate_rank_errors():
        raise error
    assert caught.value is error
