from pathlib import Path

import pytest

from nanolm.config.tokenizer import Gpt2Config
from nanolm.data import tokenizers


@pytest.fixture(scope="session")
def gpt2_folder(data_folder: Path) -> Path:
    folder = data_folder / "gpt2"
    if not (folder / "vocab.bpe").is_file():
        pytest.skip(f"GPT-2's files are missing: {folder}")
    return folder


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.fit(Gpt2Config(path=str(gpt2_folder)), [])


@pytest.fixture(scope="session")
def hugging_face_gpt2(gpt2_folder: Path):  # type: ignore[no-untyped-def]
    """GPT-2 run by Hugging Face tokenizers with its own expression, from the same files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    engine = Tokenizer(models.BPE.from_file(str(gpt2_folder / "encoder.json"), str(gpt2_folder / "vocab.bpe")))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<|endoftext|>"])
    engine.encode_special_tokens = True
    return engine
