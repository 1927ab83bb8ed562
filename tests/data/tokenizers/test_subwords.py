"""Byte pairs, GPT-2's ids, unigram, SentencePiece and tokenizer.json files of others."""

import functools
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.config.dataset import PythonStdlibConfig
from nanolm.config.tokenizer import (
    BpeConfig,
    Gpt2Config,
    PretrainedConfig,
    SentencePieceConfig,
    SentencePieceModel,
    TokenizerConfig,
    UnigramConfig,
)
from nanolm.data import corpus as corpora
from nanolm.data import tokenizers
from nanolm.data.tokenizers import byte_pieces as pieces
from nanolm.errors import TokenizerError

AWKWARD = "\0\t\n\r \x1c\x85\xa0\u0301\u093f\u2028\u2581\u2585\u3000\ufeff\ufffda'sé1१😀中<|>"
TEXTS = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.sampled_from(AWKWARD), max_size=40))
CORPUS = [
    "".join(f"{n} and {n + 1} make {2 * n + 1}, so that {n % 7} is left over.\n" for n in range(300)),
    "\tnaïve — 中文 😀\r\n" * 20,
]
LOSSLESS = {
    "bpe": BpeConfig(vocab_size=400),
    "unigram": UnigramConfig(vocab_size=400),
    "sentencepiece bpe": SentencePieceConfig(vocab_size=400),
    "sentencepiece unigram": SentencePieceConfig(vocab_size=400, model_type=SentencePieceModel.unigram),
}
A_PAGE = (
    "😀😃 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u0301\u0302 ﷽ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀\n"
    "春眠不觉晓，处处闻啼鸟。 日本語のテキスト、한국어 텍스트　全角\u3000空白\n"
    "\0\x01\x07\x1b[0m\x1c\x1d\x1e\x1f\x7f\x80\x85\x9f end\r\n\r\n\r \t \v\f\n"
    "a\xa0b\u1680c\u2000d\u2003e\u2009f\u200bg\u2028h\u2029i\u202fj\u205fk\u2060l\ufeffm\n"
    "it's IT'S we'll they've I'd you're 'tis ''''s 10,000.50 ½ Ⅷ ١٢٣ x²\n"
    "   leading   inner  \t\t mixed \n\n\n   \n trailing   "
)


@functools.cache
def fitted(kind: str) -> tokenizers.Tokenizer:
    return tokenizers.fit(LOSSLESS[kind], CORPUS)


@pytest.fixture(scope="session")
def gpt2_folder(data_folder: Path) -> Path:
    folder = data_folder / "gpt2"
    if not (folder / "vocab.bpe").is_file():
        pytest.skip(f"no GPT-2 files: {folder} is not there")
    return folder


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.fit(Gpt2Config(path=str(gpt2_folder)), [])


@pytest.fixture(scope="session")
def tiktoken_gpt2(gpt2_folder: Path):  # type: ignore[no-untyped-def]
    """tiktoken's own reading of the two files and its own expression."""
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


@pytest.fixture(scope="session")
def hugging_face_gpt2(gpt2_folder: Path):  # type: ignore[no-untyped-def]
    """Another engine with the expression of its own, from the same files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    engine = Tokenizer(models.BPE.from_file(str(gpt2_folder / "encoder.json"), str(gpt2_folder / "vocab.bpe")))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<|endoftext|>"])
    engine.encode_special_tokens = True
    return engine


def stdlib_source() -> str:
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted([*root.glob("*.py"), *root.glob("encodings/*.py"), *root.glob("asyncio/*.py")])
    return "".join(path.read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=TEXTS)
@settings(max_examples=200)
def test_any_text_comes_back(kind: str, text: str) -> None:
    tokenizer = fitted(kind)
    assert tokenizer.lossless
    ids = tokenizer.encode(text)
    assert ids.ndim == 1
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == text
    assert tokenizer.count_bytes(ids) == len(text.encode())


@given(text=TEXTS)
def test_any_text_comes_back_from_gpt2(gpt2: tokenizers.Tokenizer, text: str) -> None:
    ids = gpt2.encode(text)
    assert gpt2.decode(ids.tolist()) == text
    assert gpt2.count_bytes(ids) == len(text.encode())


@pytest.mark.parametrize("kind", LOSSLESS)
def test_awkward_texts_come_back(kind: str) -> None:
    tokenizer = fitted(kind)
    for text in (
        A_PAGE,
        "",
        "\u2581",
        " \u2581 ",
        "\r\n",
        "\0",
        "\u0301",
        "<|endoftext|>",
        "<unk></s><0x41>",
        "x" * 9999,
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(TokenizerError, match=r"U\+D83D is half a character"):
        tokenizer.encode("a\ud83d")


@pytest.mark.parametrize("kind", LOSSLESS)
def test_the_same_text_gives_the_same_tokenizer(kind: str) -> None:
    again = tokenizers.fit(LOSSLESS[kind], iter(CORPUS))
    name = LOSSLESS[kind].name
    assert tokenizers.fingerprint(name, again) == tokenizers.fingerprint(name, fitted(kind))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_training_makes_words_of_letters(kind: str) -> None:
    tokenizer = fitted(kind)
    assert 300 < tokenizer.vocab_size <= 400
    assert len(tokenizer.encode(CORPUS[0])) < (0.9 if "unigram" in kind else 0.5) * len(CORPUS[0])


@pytest.mark.parametrize("kind", LOSSLESS)
def test_special_tokens_show_their_names_and_count_nothing(kind: str) -> None:
    tokenizer = fitted(kind)
    for name, number in tokenizer.special_tokens.items():
        assert 0 <= number < tokenizer.vocab_size
        assert number not in tokenizer.encode(name)
        assert tokenizer.decode([number]) == name
        assert tokenizer.count_bytes(np.array([number])) == 0


def test_a_full_line_of_gpt2(gpt2: tokenizers.Tokenizer) -> None:
    ids = [2949, 7077, 318, 10893, 319, 262, 5527, 11, 2489, 286, 262, 3595, 318, 257, 20596, 9546, 2644, 31779]
    ids += [2786, 3929, 287, 10804, 13, 31428]
    text = "No duty is imposed on the rich, rights of the poor is a hollow phrase ... "
    text += "Enough languishing in custody. Equality"
    assert gpt2.decode(ids) == text
    assert gpt2.encode(text).tolist() == ids
    assert gpt2.encode(text).dtype == np.uint16
    assert gpt2.vocab_size == 50257
    assert gpt2.special_tokens == {"<|endoftext|>": 50256}


def test_the_name_of_a_special_token_is_ordinary_text(gpt2: tokenizers.Tokenizer) -> None:
    ids = gpt2.encode("a<|endoftext|>b").tolist()
    assert 50256 not in ids
    assert gpt2.decode(ids) == "a<|endoftext|>b"
    assert gpt2.decode([50256]) == "<|endoftext|>"


def test_gpt2_has_the_ids_of_tiktoken(gpt2: tokenizers.Tokenizer, tiktoken_gpt2) -> None:  # type: ignore[no-untyped-def]
    stdlib = "".join(piece.text for piece in corpora.load(PythonStdlibConfig()).pieces())
    assert len(stdlib) > 8_000_000
    for text in (stdlib, A_PAGE, A_PAGE * 3000):
        assert (gpt2.encode(text) == tiktoken_gpt2.encode_to_numpy(text, disallowed_special=())).all()


def test_gpt2_has_the_ids_of_hugging_face(gpt2: tokenizers.Tokenizer, hugging_face_gpt2) -> None:  # type: ignore[no-untyped-def]
    for text in (stdlib_source()[:1_500_000], A_PAGE, A_PAGE * 300):
        assert gpt2.encode(text).tolist() == hugging_face_gpt2.encode(text).ids


@given(text=TEXTS)
def test_parts_have_the_ids_of_the_whole(gpt2: tokenizers.Tokenizer, hugging_face_gpt2, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_CHUNK", 2)
        assert "".join(pieces.chunks(text)) == text
        assert gpt2.encode(text).tolist() == hugging_face_gpt2.encode(text).ids


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_parts_of_a_trained_one_have_the_ids_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CORPUS[0] + A_PAGE
    whole = fitted(kind).encode(text)
    monkeypatch.setattr(pieces, "_CHUNK", 5)
    assert len(list(pieces.chunks(text))) > 1000
    assert (fitted(kind).encode(text) == whole).all()


@pytest.mark.parametrize("blank", [" ", "\n", "\u3000", " \n"])
def test_a_million_blanks_do_not_overflow(gpt2: tokenizers.Tokenizer, blank: str) -> None:
    for text in (blank * 1_000_000, blank * 1_000_000 + "x", "é" + blank * 1_000_000 + "é y"):
        ids = gpt2.encode(text)
        assert gpt2.count_bytes(ids) == len(text.encode())
    few = blank * 2000 + "é"
    assert gpt2.encode(text).tolist()[-20:] == gpt2.encode(few + " y").tolist()[-20:]


def test_trained_pairs_have_the_ids_of_hugging_face() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = fitted("bpe")
    merges = [tuple(merge.split(" ")) for merge in tokenizer.to_json()["merges"]]
    tokens = [*pieces.CHARACTER_OF_BYTE.values(), *map("".join, merges)]
    engine = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in (CORPUS[0], A_PAGE):
        assert tokenizer.encode(text).tolist() == engine.encode(text).ids


def test_gpt2_from_the_files_of_hugging_face(
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


def test_a_pretrained_gpt2_is_known_to_be_lossless(
    gpt2: tokenizers.Tokenizer,
    hugging_face_gpt2,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    (tmp_path / "tokenizer.json").write_text(hugging_face_gpt2.to_str(), encoding="utf-8")
    tokenizer = tokenizers.fit(PretrainedConfig(path=str(tmp_path)), [])
    assert tokenizer.lossless
    assert tokenizer.special_tokens == {"<|endoftext|>": 50256}
    for text in (A_PAGE, "a<|endoftext|>b", CORPUS[0]):
        ids = tokenizer.encode(text)
        assert (ids == gpt2.encode(text)).all()
        assert tokenizer.decode(ids) == text
        assert tokenizer.count_bytes(ids) == len(text.encode())


def test_gpt2_is_downloaded_and_verified(gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, sha256: str) -> Path:
        asked.append((url.rsplit("/", 1)[-1], sha256[:8]))
        return gpt2_folder / url.rsplit("/", 1)[-1]

    monkeypatch.setattr("nanolm.data.tokenizers.bytepairs.fetch", fetch)
    assert tokenizers.fit(Gpt2Config(), []).vocab_size == 50257
    assert asked == [("encoder.json", "19613966"), ("vocab.bpe", "1ce16647")]


def test_no_network_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path))
    with pytest.raises(TokenizerError, match=r"cannot fetch[\s\S]*tokenizer.path=FOLDER"):
        tokenizers.fit(Gpt2Config(encoder_url="http://127.0.0.1:9/encoder.json"), [])


def small_gpt2(folder: Path, merges: str = "#version: 0.2\nh e\nhe y\n", **ids: object) -> Gpt2Config:
    tokens = {token: n for n, token in enumerate([*pieces.CHARACTER_OF_BYTE.values(), "he", "hey", "<|endoftext|>"])}
    (folder / "encoder.json").write_text(json.dumps(tokens | ids), encoding="utf-8")
    (folder / "vocab.bpe").write_text(merges, encoding="utf-8")
    return Gpt2Config(path=str(folder))


def test_a_small_gpt2(tmp_path: Path) -> None:
    tokenizer = tokenizers.fit(small_gpt2(tmp_path), [])
    assert tokenizer.encode("hey he").tolist() == [257, 220, 256]


@pytest.mark.parametrize(
    ("merges", "ids", "expected"),
    [
        ("#version: 0.2\nh e\n", {}, "do not fit: no merge makes 'hey'"),
        ("#version: 0.2\nh e\nhe n\n", {}, "do not fit: by the merges 'hen' has the id 257, and by the table None"),
        ("#version: 0.2\nhe y\nh e\n", {}, "merge 0, 'he y', is not of two tokens"),
        ("#version: 0.2\nh e\nh e\n", {}, "makes a token that is there already"),
        ("#version: 0.2\nh e\nhe y\n", {"he": 257, "hey": 256}, "do not fit: by the merges 'he' has the id 256"),
        ("#version: 0.2\nh e\nhe y\n", {"he": 257}, "same id"),
        ("#version: 0.2\nh e\nhe y\n", {"he": "256"}, "from tokens to ids"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, merges: str, ids: dict[str, object], expected: str) -> None:
    with pytest.raises(TokenizerError, match=expected) as caught:
        tokenizers.fit(small_gpt2(tmp_path, merges, **ids), [])
    assert str(tmp_path) in str(caught.value)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
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
def test_a_vocabulary_without_room(config: TokenizerConfig) -> None:
    with pytest.raises(TokenizerError, match=r"no room for 256|there twice"):
        tokenizers.fit(config, CORPUS)


def test_sentencepiece_without_room_or_text() -> None:
    with pytest.raises(TokenizerError, match="the bytes and the characters of the corpus are more"):
        tokenizers.fit(SentencePieceConfig(vocab_size=262), CORPUS)
    with pytest.raises(TokenizerError, match="the corpus"):
        tokenizers.fit(SentencePieceConfig(), ["\n"])


def pretrained_state(**changes: object) -> dict[str, object]:
    state = json.loads(json.dumps(fitted("unigram").to_json()["tokenizer"]))
    return state | changes


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\w+"}, "invert": False}


@pytest.mark.parametrize(
    ("changes", "lossless"),
    [
        ({}, True),
        ({"normalizer": {"type": "NFC"}}, False),
        ({"pre_tokenizer": LEVEL | {"add_prefix_space": True}}, False),
        ({"decoder": None}, False),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT | {"behavior": "Isolated"}, LEVEL]}}, True),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT | {"behavior": "Removed"}, LEVEL]}}, False),
    ],
)
def test_lossless_is_said_only_where_it_holds(tmp_path: Path, changes: dict[str, object], lossless: bool) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(pretrained_state(**changes)), encoding="utf-8")
    tokenizer = tokenizers.fit(PretrainedConfig(path=str(path)), [])
    assert tokenizer.lossless is lossless
    ids = tokenizer.encode(A_PAGE)
    assert tokenizer.count_bytes(ids) == len(tokenizer.decode(ids).encode())
    if lossless:
        assert tokenizer.decode(ids) == A_PAGE
    again = tokenizers.PretrainedTokenizer.from_json(tokenizer.to_json())
    assert (again.encode(A_PAGE) == ids).all()


def test_what_a_tokenizer_without_unk_cannot_encode_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(pretrained_state(pre_tokenizer=None)), encoding="utf-8")
    tokenizer = tokenizers.fit(PretrainedConfig(path=str(path)), [])
    assert not tokenizer.lossless
    with pytest.raises(TokenizerError, match="cannot encode the text"):
        tokenizer.encode("中")


@pytest.mark.parametrize(
    "model",
    [
        {},
        None,
        {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []},
        {"type": "BPE", "vocab": {"a": "0"}, "merges": []},
        {"type": "Unigram", "vocab": ["a"], "unk_id": None},
        {"type": "Unigram", "vocab": [], "unk_id": None},
        {"type": "Unheard", "vocab": {"a": 0}},
    ],
)
def test_a_damaged_tokenizer_json(tmp_path: Path, model: object) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(pretrained_state(model=model)), encoding="utf-8")
    with pytest.raises(TokenizerError) as caught:
        tokenizers.fit(PretrainedConfig(path=str(path)), [])
    assert str(path) in str(caught.value)
