import json
import math
from pathlib import Path

import pytest

from nanolm.baselines import compressors
from nanolm.data import corpus
from tests.helpers import make_config


def test_compressors_reproduce_tiny_shakespeare(shakespeare: Path) -> None:
    text = corpus.load(make_config("dataset=tiny_shakespeare", f"dataset.path={shakespeare}").dataset)
    found = compressors.validation_bits_per_byte(text)
    in_nats = {name: round(bits * math.log(2), 3) for name, bits in found.items()}
    assert in_nats == {"gzip": 2.146, "bz2": 1.662, "xz": 1.746}


def test_compressors_use_the_training_text() -> None:
    text = " ".join(str(n * n) for n in range(3000)).encode()
    apart, again = compressors.bits_per_byte(b"x", text), compressors.bits_per_byte(text, text)
    assert again["xz"] < 0.1 < 2 < apart["xz"]
    # gzip remembers a text shorter than its window as well; bz2, which sorts one block, does not.
    assert again["gzip"] < 0.2 * apart["gzip"]
    assert all(bits > 0 for bits in again.values())


def test_compressors_omit_differences_within_overhead() -> None:
    line = b"the quick brown fox jumps over the lazy dog. " * 8 + b"\n"
    english = "".join(chr(97 + n * n * n % 26) for n in range(2000)).encode()
    # gzip needs 3 bytes for 722, bz2 and xz none; for 20 bytes each needs 4 to 8; without text there is no result.
    assert compressors.bits_per_byte(line * 18, line * 2) == {}
    assert compressors.bits_per_byte(line * 2, line[:20]) == {}
    assert compressors.bits_per_byte(english, b"") == {}
    for n in range(1, 400, 50):
        assert all(bits > 0 for bits in compressors.bits_per_byte(english[:n], english[n : n + n // 9 + 1]).values())


def test_compressors_cache_result_by_split(small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))

    def found(*overrides: str) -> dict[str, float]:
        config = make_config("dataset=text", f"dataset.path={small_text}", *overrides)
        return compressors.validation_bits_per_byte(corpus.load(config.dataset))

    first = found()
    (cached,) = (tmp_path / "cache" / "compressors").iterdir()
    assert first == json.loads(cached.read_bytes())
    cached.write_text(json.dumps({"gzip": 1, "bz2": 2, "xz": 3}))
    assert found() == {"gzip": 1.0, "bz2": 2.0, "xz": 3.0}  # read from the cache
    assert found("dataset.val_fraction=0.2")["xz"] not in (3.0, first["xz"])
    for damaged in ("[]", '{"gzip": null}', '{"gzip": '):
        cached.write_text(damaged)
        assert found() == first
    assert json.loads(cached.read_bytes()) == first


def test_compressors_skip_long_text(small_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus.load(make_config("dataset=text", f"dataset.path={small_text}").dataset)
    monkeypatch.setattr(compressors, "MAX_CHARACTERS", 1000)
    assert compressors.validation_bits_per_byte(text) == {}
