import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from nanolm.config.dataset import PythonStdlibConfig
from nanolm.config.tokenizer import (
    BpeConfig,
    Gpt2Config,
    PretrainedConfig,
    TokenizerConfig,
    UnigramConfig,
)
from nanolm.data import corpus as corpora
from nanolm.data import tokenizers
from nanolm.data.tokenizers import byte_pieces
from nanolm.errors import TokenizerError
from tests.texts import A_PAGE, CORPUS, TEXTS, trained, write_small_gpt2


@given(text=TEXTS)
def test_gpt2_is_lossless_for_any_text(gpt2: tokenizers.Tokenizer, text: str) -> None:
    ids = gpt2.encode(text)
    assert gpt2.decode(ids.tolist()) == text
    assert gpt2.count_bytes(ids) == len(text.encode())


def test_gpt2_ids_of_known_text(gpt2: tokenizers.Tokenizer) -> None:
    ids = [2949, 7077, 318, 10893, 319, 262, 5527, 11, 2489, 286, 262, 3595, 318, 257, 20596, 9546, 2644, 31779]
    ids += [2786, 3929, 287, 10804, 13, 31428]
    text = "No duty is imposed on the rich, rights of the poor is a hollow phrase ... "
    text += "Enough languishing in custody. Equality"
    assert gpt2.decode(ids) == text
    assert gpt2.encode(text).tolist() == ids
    assert gpt2.encode(text).dtype == np.uint16
    assert gpt2.vocab_size == 50257
    assert gpt2.special_tokens == {"<|endoftext|>": 50256}


def test_gpt2_encodes_special_name_as_text(gpt2: tokenizers.Tokenizer) -> None:
    ids = gpt2.encode("a<|endoftext|>b").tolist()
    assert 50256 not in ids
    assert gpt2.decode(ids) == "a<|endoftext|>b"
    assert gpt2.decode([50256]) == "<|endoftext|>"


@pytest.fixture(scope="session")
def tiktoken_gpt2(gpt2_folder: Path):  # type: ignore[no-untyped-def]
    """GPT-2 run by tiktoken with its own loader and expression."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        ranks = data_gym_to_mergeable_bpe_ranks(
            vocab_bpe_file=str(gpt2_folder / "vocab.bpe"), encoder_json_file=str(gpt2_folder / "encoder.json")
        )
    return tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )


def stdlib_source() -> str:
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted([*root.glob("*.py"), *root.glob("encodings/*.py"), *root.glob("asyncio/*.py")])
    return "".join(path.read_text(encoding="utf-8") for path in paths)


@pytest.mark.slow
def test_gpt2_ids_equal_tiktoken(gpt2: tokenizers.Tokenizer, tiktoken_gpt2) -> None:  # type: ignore[no-untyped-def]
    stdlib = "".join(piece.text for piece in corpora.load(PythonStdlibConfig()).pieces())
    assert len(stdlib) > 8_000_000
    for text in (stdlib, A_PAGE, A_PAGE * 3000):
        assert (gpt2.encode(text) == tiktoken_gpt2.encode_to_numpy(text, disallowed_special=())).all()


def test_gpt2_ids_equal_hugging_face(gpt2: tokenizers.Tokenizer, hugging_face_gpt2) -> None:  # type: ignore[no-untyped-def]
    for text in (stdlib_source()[:1_500_000], A_PAGE, A_PAGE * 300):
        assert gpt2.encode(text).tolist() == hugging_face_gpt2.encode(text).ids


def test_bpe_ids_equal_hugging_face() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = trained("bpe")
    merges = [tuple(merge.split(" ")) for merge in tokenizer.to_json()["merges"]]
    tokens = [*byte_pieces.BYTE_TO_CHARACTER.values(), *map("".join, merges)]
    engine = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in (CORPUS[0], A_PAGE):
        assert tokenizer.encode(text).tolist() == engine.encode(text).ids


def test_gpt2_reads_hugging_face_files(
    gpt2: tokenizers.Tokenizer,
    hugging_face_gpt2,  # type: ignore[no-untyped-def]
    gpt2_folder: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "tokenizer.json").write_text(hugging_face_gpt2.to_str(), encoding="utf-8")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "vocab.json").write_bytes((gpt2_folder / "encoder.json").read_bytes())
    (tmp_path / "two" / "merges.txt").write_bytes((gpt2_folder / "vocab.bpe").read_bytes())
    for path in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "two"):
        again = tokenizers.fit(Gpt2Config(path=str(path)), [])
        assert tokenizers.fingerprint("gpt2", again) == tokenizers.fingerprint("gpt2", gpt2)


def test_gpt2_downloads_with_checksums(gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def fetch(url: str, sha256: str, setting: str) -> Path:
        assert setting.endswith("_url")
        requested.append((url.rsplit("/", 1)[-1], sha256[:8]))
        return gpt2_folder / url.rsplit("/", 1)[-1]

    monkeypatch.setattr("nanolm.data.tokenizers.bytepairs.fetch", fetch)
    assert tokenizers.fit(Gpt2Config(), []).vocab_size == 50257
    assert requested == [("encoder.json", "19613966"), ("vocab.bpe", "1ce16647")]


def test_gpt2_without_network_gives_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path))
    with pytest.raises(TokenizerError, match=r"cannot fetch[\s\S]*tokenizer.path=FOLDER"):
        tokenizers.fit(Gpt2Config(encoder_url="http://127.0.0.1:9/encoder.json"), [])


def test_gpt2_reads_small_vocabulary(tmp_path: Path) -> None:
    tokenizer = tokenizers.fit(write_small_gpt2(tmp_path), [])
    assert tokenizer.encode("hey he").tolist() == [257, 220, 256]


@pytest.mark.parametrize(
    ("merges", "ids", "expected"),
    [
        ("#version: 0.2\nh e\n", {}, "are inconsistent: no merge produces 'hey'"),
        (
            "#version: 0.2\nh e\nhe n\n",
            {},
            "are inconsistent: 'hen' has the id 257 by the merges, and None in the vocabulary",
        ),
        ("#version: 0.2\nhe y\nh e\n", {}, "merge 0, 'he y', uses tokens that no earlier merge produces"),
        ("#version: 0.2\nh e\nh e\n", {}, "produces a token that exists already"),
        ("#version: 0.2\nh e\nhe y\n", {"he": 257, "hey": 256}, "are inconsistent: 'he' has the id 256 by the merges"),
        ("#version: 0.2\nh e\nhe y\n", {"he": 257}, "same id"),
        ("#version: 0.2\nh e\nhe y\n", {"he": "256"}, "from tokens to ids"),
    ],
)
def test_gpt2_refuses_inconsistent_files(tmp_path: Path, merges: str, ids: dict[str, object], expected: str) -> None:
    with pytest.raises(TokenizerError, match=expected) as caught:
        tokenizers.fit(write_small_gpt2(tmp_path, merges, **ids), [])
    assert str(tmp_path) in str(caught.value)


def test_missing_path_is_named(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    for config in (Gpt2Config(path=nowhere), Gpt2Config(path=str(tmp_path)), PretrainedConfig(path=nowhere)):
        with pytest.raises(TokenizerError, match=r"where: tokenizer\.path") as caught:
            tokenizers.fit(config, [])
        assert str(config.path) in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{")
    for config in (Gpt2Config(path=str(tmp_path)), PretrainedConfig(path=str(tmp_path))):
        with pytest.raises(TokenizerError, match="not JSON"):
            tokenizers.fit(config, [])


@pytest.mark.parametrize(
    "config",
    [BpeConfig(vocab_size=256), UnigramConfig(vocab_size=256), BpeConfig(special_tokens=["a", "a"])],
)
def test_fit_refuses_too_small_vocabulary(config: TokenizerConfig) -> None:
    with pytest.raises(TokenizerError, match=r"no room for 256|there twice"):
        tokenizers.fit(config, CORPUS)
