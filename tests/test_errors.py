import pickle

from nanolm.errors import DivergedError, Problems, SettingsError, nearest


def test_an_error_says_what_where_and_how_to_mend_it() -> None:
    assert str(SettingsError("it is blue", where="the sky", mend="paint it")).splitlines() == [
        "it is blue",
        "  where: the sky",
        "  mend:  paint it",
    ]


def test_errors_cross_process_borders() -> None:
    error = pickle.loads(pickle.dumps(Problems([DivergedError("a", where="b"), SettingsError("c")])))  # noqa: S301
    assert [type(problem) for problem in error.problems] == [DivergedError, SettingsError]
    assert str(error) == "a\n  where: b\nc"


def test_nearest_finds_a_key_given_without_its_group() -> None:
    assert nearest("lr", ["optimizer.lr", "logger", "trainer.clip_norm"]).startswith("did you mean optimizer.lr?")
    assert nearest("trainer.max_step", ["trainer.max_steps", "x"]).startswith("did you mean trainer.max_steps?")
    assert nearest("qqq", ["a", "b"]) == "one of: a, b"
