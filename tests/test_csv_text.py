import csv
import io

import pytest

from nanolm.csv_text import csv_line


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        '=HYPERLINK("http://example.com?"&A1)',
        "+1+1",
        "-1+1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "＝1",
        "-",
        "--help",
        "-1,5",
        "-1e",
        "+-1",
        "-٣",
    ],
)
def test_formula_is_escaped(text: str) -> None:
    ((cell, last),) = csv.reader(io.StringIO(csv_line([text, "end"]), newline=""))
    assert (cell, last) == (f"'{text}", "end")


@pytest.mark.parametrize("value", ["-1", "+0.5", "-1.5e-07", "-.5", "-inf", "a=b", "gpt", "", "Kä-1", -1.5, 3])
def test_numbers_and_other_texts_are_unchanged(value: object) -> None:
    assert csv_line([value, None]) == f"{value},"


@pytest.mark.parametrize("text", ["a;=1+1", "a\r=1+1", "a\n=1+1", "a\t=1", 'a",=1', "a,=1"])
def test_separators_do_not_start_a_cell(text: str) -> None:
    line = csv_line([text])
    assert line[0] == line[-1] == '"'
    assert list(csv.reader(io.StringIO(line, newline=""))) == [[text]]
