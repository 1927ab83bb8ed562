from pathlib import Path
from typing import Any

import pytest

from nanolm.analysis.collection import find
from nanolm.analysis.comparison import Comparison, compare
from tests.runs.made import make_run

GPT = {"model": "gpt", "dataset": "tiny_shakespeare", "tokenizer": "char", "size": "small"}

TEXT = {"model": "bigram", "dataset": "text", "tokenizer": "bpe"}


def compared(folder: Path, **options: Any) -> Comparison:
    return compare(find([folder]), **options)


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (
            {"settings": {"dataset.path": "a.txt"}, "corpus": "a" * 64, "tokenizer": "a" * 64},
            {"settings": {"dataset.path": "b.txt"}, "corpus": "b" * 64, "tokenizer": "b" * 64},
            {"xz (text path=a.txt)", "xz (text path=b.txt)", "counted bigram (text path=b.txt, bpe)"},
        ),
        (
            {"settings": {"dataset.val_fraction": 0.2}},
            {"settings": {"dataset.path": "b.txt"}},
            {"xz (text val_fraction=0.2 path=a.txt)", "xz (text val_fraction=0.1 path=b.txt)"},
        ),
        ({"corpus": "a" * 64}, {"corpus": "b" * 64}, {"xz (text aaaaaaaa)", "xz (text bbbbbbbb)"}),
        (
            {"settings": {"tokenizer.vocab_size": 300}, "tokenizer": "a" * 64},
            {"settings": {"tokenizer.vocab_size": 400}, "tokenizer": "b" * 64},
            {"xz", "counted bigram (bpe vocab_size=300)", "counted bigram (bpe vocab_size=400)"},
        ),
        (
            {"tokenizer": "a" * 64},
            {"tokenizer": "b" * 64},
            {"xz", "counted bigram (bpe aaaaaaaa)", "counted bigram (bpe bbbbbbbb)"},
        ),
    ],
)
def test_baseline_names_are_unique(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], names: set[str]
) -> None:
    for n, change in enumerate((first, second)):
        make_run(tmp_path / f"{n}", losses=[2.0], choices=TEXT, **change)
        make_run(tmp_path / f"{n} again", losses=[2.1], choices=TEXT, **change)
    found = [line.name for line in compared(tmp_path).baselines]
    assert len(found) == len(set(found))
    assert names <= set(found)


def test_nonpositive_baselines_are_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[2.0], baseline_bits_per_byte={"gzip": -0.2, "bz2": 0.0, "xz": 0.1})
    assert [line.name for line in compared(tmp_path).baselines if not line.name.startswith("counted")] == ["xz"]


def test_baselines_have_both_units(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[2.0], bits_per_nat=1.5)
    lines = {line.name: line for line in compared(tmp_path).baselines}
    assert list(lines) == ["counted unigram", "counted bigram", "gzip", "xz"]
    assert lines["counted bigram"].bits_per_byte == pytest.approx(3.75)
    assert lines["gzip"].loss == pytest.approx(3.1 / 1.5)
