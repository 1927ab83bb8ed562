from pathlib import Path

import numpy as np
import pytest
import torch

from nanolm.analysis.collection import find
from nanolm.config.trainer import AttentionBackend
from nanolm.errors import SettingsError, TokenizerError
from nanolm.inference.load import load_run
from nanolm.model.transformer import Transformer
from nanolm.report.attention_maps import MAX_TOKENS, run_maps, text_map, why_none
from nanolm.runs.samples import read_samples
from tests.run_fixtures import make_run


def test_weights_sum_to_1_over_visible_keys(pair: Path) -> None:
    found = text_map(load_run(str(pair / "gpt"), device="cpu"), "12 and 13 make 25; 3 is left.")
    assert "".join(found.tokens) == "12 and 13 make 2"
    assert found.n_left_out == 13
    assert [layer.mask for layer in found.layers] == ["banded_causal, window 2", "causal"]
    for layer in found.layers:
        assert layer.weights_HxTxS.shape == (2, 16, 16)
        np.testing.assert_allclose(layer.weights_HxTxS.sum(-1), 1, rtol=1e-5)
        assert (layer.weights_HxTxS[:, ~layer.visible_TxS] == 0).all()
        assert (layer.weights_HxTxS[:, layer.visible_TxS] > 0).all()
    queries, keys = np.indices((16, 16))
    np.testing.assert_array_equal(found.layers[0].visible_TxS, (keys <= queries) & (queries - keys <= 2))


def test_weights_reproduce_the_output_of_attention(pair: Path) -> None:
    """The weights give the output of the attention layer, and recording them changes nothing."""
    loaded = load_run(str(pair / "gpt"), device="cpu")
    model = loaded.model
    assert isinstance(model, Transformer)
    model.train()
    text = "12 and 13 make 2"
    tokens_1xT = torch.from_numpy(loaded.tokenizer.encode(text)[None].astype(np.int64))
    before = model(tokens_1xT)
    found = text_map(loaded, text)
    assert model.training
    assert model.attention_backend is AttentionBackend.auto
    assert torch.equal(before, model(tokens_1xT))
    read: dict[str, torch.Tensor] = {}
    attention = model.blocks[1].attention
    attention.register_forward_hook(lambda module, given, output: read.update(x=given[0], out=output))
    model.eval()(tokens_1xT)
    value_rows = attention.row_counts["query_key_value"]
    v_BxHxTxD = attention.query_key_value(read["x"]).split(value_rows, dim=-1)[2].unflatten(-1, (2, -1)).transpose(1, 2)
    attended = torch.from_numpy(found.layers[1].weights_HxTxS)[None] @ v_BxHxTxD
    torch.testing.assert_close(attention.projection(attended.transpose(1, 2).flatten(2)), read["out"])


def test_uniform_attention_has_equal_weights(text: Path, tmp_path: Path) -> None:
    overrides = ("model=gpt", "model.attention=uniform", "model.positions=learned", "trainer.max_steps=1")
    loaded = load_run(str(make_run(tmp_path / "run", text, *overrides)), device="cpu")
    (first, _) = text_map(loaded, "1 and 2").layers
    expected = np.tril(np.ones((7, 7))) / np.arange(1, 8)[:, None]
    np.testing.assert_allclose(first.weights_HxTxS, expected[None], rtol=1e-6)


def test_layers_are_selected(pair: Path) -> None:
    loaded = load_run(str(pair / "gpt"), device="cpu")
    assert [layer.layer for layer in text_map(loaded, "1 and", layers=[1]).layers] == [1]
    for wrong in (2, -1):
        with pytest.raises(SettingsError, match=f"has no layer {wrong}") as error:
            text_map(loaded, "1 and", layers=[wrong])
        assert error.value.hint == "from 0 to 1"


def test_invalid_texts_are_errors(pair: Path) -> None:
    loaded = load_run(str(pair / "gpt"), device="cpu")
    with pytest.raises(SettingsError, match="has no tokens"):
        text_map(loaded, "")
    with pytest.raises(TokenizerError, match="Ω"):
        text_map(loaded, "Ω")


def test_default_text_is_the_last_sample(pair: Path) -> None:
    bigram, gpt = find([pair])
    (read,) = run_maps(gpt, [], None, []).texts
    assert read.text.strip()
    assert read.text in read_samples(gpt.path / "samples.jsonl")[-1].text
    assert len(read.tokens) <= MAX_TOKENS
    assert why_none(gpt) is None
    assert why_none(bigram) == "the model bigram has no attention"
