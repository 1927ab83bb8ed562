import pytest

from nanolm.wording import format_age, format_bytes, format_duration, format_estimate, format_value, short_number


def test_short_numbers() -> None:
    shown = [short_number(n) for n in (0, 7.25, 812, 4225, 999_499, 999_600, 812_800, 1_020_000, 3.43e9, 3.1e15)]
    assert shown == ["0", "7.25", "812", "4.22k", "999k", "1M", "813k", "1.02M", "3.43G", "3.1e15"]


def test_values_are_written_as_typed() -> None:
    assert [format_value(value) for value in (None, True, 0.001, ["a", 1], "x")] == ["–", "true", "0.001", "a,1", "x"]


def test_values_keep_their_digits() -> None:
    assert [format_value(value) for value in (1e-3, 3e-4, 0.1, 1e6)] == ["0.001", "0.0003", "0.1", "1e+06"]
    assert [format_value(value) for value in (0.00123456781, 0.00123456789)] == ["0.00123456781", "0.00123456789"]


def test_bytes_are_in_binary_units() -> None:
    sizes = (0, 1023, 1024, 1_500_000, 3 * 2**30, 2**62)
    assert [format_bytes(size) for size in sizes] == [
        "0.0 B",
        "1,023.0 B",
        "1.0 KiB",
        "1.4 MiB",
        "3.0 GiB",
        "4,096.0 PiB",
    ]


def test_durations_are_exact() -> None:
    assert [format_duration(seconds) for seconds in (0.04, 59.94, 65, 7260)] == [
        "0.0 s",
        "59.9 s",
        "1 min 05 s",
        "2 h 01 min",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (600, "10 min"), (9000, "2.5 h"), (float("inf"), "?")])
def test_estimated_durations_are_rounded(seconds: float, text: str) -> None:
    assert format_estimate(seconds) == text


def test_ages_have_one_unit() -> None:
    assert [format_age(seconds) for seconds in (3, 125, 7300, 200_000)] == ["3 s", "2 min", "2 h", "2 d"]
