import json
import math
from pathlib import Path

import pytest

from nanolm.baselines import compressors
from nanolm.data import corpus
from tests.helpers import make_config


def test_tiny_shakespeare_comes_to_the_known_figures(shakespeare: Path) -> None:
    text = corpus.load(make_config("dataset=tiny_shakespeare", f"dataset.path={shakespeare}").dataset)
    found = compressors.validation_bits_per_byte(text)
    in_nats = {name: round(bits * math.log(2), 3) for name, bits in found.items()}
    assert in_nats == {"gzip": 2.146, "bz2": 1.662, "xz": 1.746}


def test_what_was_seen_in_training_costs_next_to_nothing() -> None:
    text = " ".join(str(n * n) for n in range(3000)).encode()
    apart, again = compressors.bits_per_byte(b"x", text), compressors.bits_per_byte(text, text)
    assert again["xz"] < 0.1 < 2 < apart["xz"]
    # A text shorter than its window is as well remembered by gzip, and not by bz2, which sorts one block.
    assert again["gzip"] < 0.2 * apart["gzip"]
    assert all(bits > 0 for bits in again.values())


def test_a_difference_within_the_container_is_left_out() -> None:
    line = b"the quick brown fox jumps over the lazy dog. " * 8 + b"\n"
    english = "".join(chr(97 + n * n * n % 26) for n in range(2000)).encode()
    # gzip says 3 bytes of 722, bz2 and xz none; of 20 bytes each would say 4 to 8; of none at all nothing can be said.
    assert compressors.bits_per_byte(line * 18, line * 2) == {}
    assert compressors.bits_per_byte(line * 2, line[:20]) == {}
    assert compressors.bits_per_byte(english, b"") == {}
    for n in range(1, 400, 50):
        assert all(bits > 0 for bits in compressors.bits_per_byte(english[:n], english[n : n + n // 9 + 1]).values())


def test_a_text_is_compressed_once_for_each_split(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))

    def found(*overrides: str) -> dict[str, float]:
        config = make_config("dataset=text", f"dataset.path={small_text}", *overrides)
        return compressors.validation_bits_per_byte(corpus.load(config.dataset))

    first = found()
    (kept,) = (tmp_path / "cache" / "compressors").iterdir()
    assert first == json.loads(kept.read_bytes())
    kept.write_text(json.dumps({"gzip": 1, "bz2": 2, "xz": 3}))
    assert found() == {"gzip": 1.0, "bz2": 2.0, "xz": 3.0}  # read, and not worked out again
    assert found("dataset.val_fraction=0.2")["xz"] not in (3.0, first["xz"])
    for damaged in ("[]", '{"gzip": null}', '{"gzip": '):
        kept.write_text(damaged)
        assert found() == first
    assert json.loads(kept.read_bytes()) == first


def test_a_long_text_is_left_alone(small_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus.load(make_config("dataset=text", f"dataset.path={small_text}").dataset)
    monkeypatch.setattr(compressors, "COMPRESSIBLE_CHARACTERS", 1000)
    assert compressors.validation_bits_per_byte(text) == {}
