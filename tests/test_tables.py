import io

import pytest
from rich.text import Text

from nanolm.tables import LONG, Console, Table, cell


def printed(table: Table, monkeypatch: pytest.MonkeyPatch, width: int = 40) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    output = io.StringIO()
    Console(file=output).print(table)
    return [line.rstrip() for line in output.getvalue().splitlines() if line.strip()]


def test_table_aligns_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(["name", "loss"], "lr")
    table.add_row("a", "2.5")
    table.add_row("long name", "12.25")
    head, rule, first, second = printed(table, monkeypatch)
    assert head == " name        loss"
    assert set(rule.strip()) == {"─"}
    assert (first, second) == (" a            2.5", " long name  12.25")


def test_long_table_looks_like_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(n_copies: int) -> Table:
        table = Table(["[bold]", "val\nloss", "step"], "lrR")
        for _ in range(n_copies):
            table.add_row(cell("a", "green"), "2.5\n±1", "1", style="bold")
            table.add_row("name [red]\x1b[31m", Text("2.5\n±1"), "123")
        return table

    short, long = (printed(make(copies), monkeypatch) for copies in (1, LONG))
    assert long[:3] == short[:3]
    assert long[3:] == short[3:] * LONG
    narrow = printed(make(LONG), monkeypatch, 30)
    assert max(map(len, narrow)) <= 30
    assert "name [red]\\x1b[31m" in "".join(line[1:13].strip() for line in narrow[3:9])


def test_table_without_headings_has_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(["", ""], "ll")
    table.add_row("a", "b")
    assert printed(table, monkeypatch) == [" a  b"]


def test_table_prints_strings_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(["[bold]", "b"], "ll")
    table.add_row("[red]a[/]", "b\nc", style="dim")
    table.add_row(cell("[x]", "bold"), "\x1b[31m")
    lines = printed(table, monkeypatch)
    assert lines[0].split() == ["[bold]", "b"]
    assert [line.split() for line in lines[2:]] == [["[red]a[/]", "b\\x0ac"], ["[x]", "\\x1b[31m"]]


def test_upper_case_alignment_does_not_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(["text", "number"], "lR")
    table.add_row("words that are wrapped in a narrow table", "1 234 567")
    lines = printed(table, monkeypatch, 30)
    assert sum("1 234 567" in line for line in lines) == 1
    assert len(lines) > 3
