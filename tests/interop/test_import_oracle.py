"""Imported models compute what transformers computes, at every position, with and without a cache."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import nanolm
from nanolm.inference.load import load_run
from nanolm.model.sampling import sample
from tests.interop.hf_folders import CONFIGS, VOCAB_SIZE, write_model, write_tokenizer
from tests.interop.test_import import LOGITS, TOKENS_1x16

# Importing transformers takes seconds.
pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
N_SAMPLES = 8
FORMATS = ("safetensors", "shards", "bin")
LENGTH = 24


def draw_config(name: str, draw: random.Random) -> dict[str, Any]:
    """Draw a small model of an architecture."""
    n_heads = draw.choice([2, 4])
    width = n_heads * draw.choice([4, 6])
    shared = {"vocab_size": draw.choice([VOCAB_SIZE, 320]), "tie_word_embeddings": draw.random() < 0.5}
    if name == "gpt2":
        return shared | {
            "n_embd": width,
            "n_head": n_heads,
            "n_layer": draw.randint(1, 3),
            "n_positions": LENGTH,
            "n_inner": draw.choice([None, 20]),
            "activation_function": draw.choice(["gelu_new", "gelu", "relu"]),
            "layer_norm_epsilon": draw.choice([1e-5, 1e-3]),
        }
    config = shared | {
        "hidden_size": width,
        "intermediate_size": draw.choice([20, 4 * width]),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": n_heads,
        "num_key_value_heads": draw.choice([n for n in (1, 2, 4) if n_heads % n == 0]),
        "head_dim": draw.choice([width // n_heads, 8]),
        "max_position_embeddings": LENGTH,
        "attention_bias": draw.random() < 0.5,
        "rms_norm_eps": draw.choice([1e-6, 1e-4]),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([100.0, 10_000.0])},
    }
    if name == "llama":
        return config | {"mlp_bias": draw.random() < 0.5}
    return config | {
        "hidden_act": draw.choice(["relu2", "gelu_new"]),
        "final_logit_softcapping": draw.choice([None, 5.0]),
    }


def save(model: Any, folder: Path, form: str) -> None:
    """Save a model of transformers with a tokenizer."""
    model.save_pretrained(folder, max_shard_size="10KB" if form == "shards" else "1GB")
    assert (folder / "model.safetensors.index.json").exists() == (form == "shards")
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    write_tokenizer(folder)


def make_model(name: str, seed: int, **changes: Any) -> Any:
    """Return a random model of transformers in evaluation mode."""
    import transformers

    classes = {
        "gpt2": transformers.GPT2LMHeadModel,
        "llama": transformers.LlamaForCausalLM,
        "nanochat": transformers.NanoChatForCausalLM,
    }
    kind = classes[name]
    settings = draw_config(name, random.Random(seed)) | changes
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    model = kind(kind.config_class(**settings, **special)).eval()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("seed", range(N_SAMPLES))
@pytest.mark.parametrize("name", CONFIGS)
def test_import_computes_what_transformers_computes(name: str, seed: int, tmp_path: Path) -> None:
    model = make_model(name, seed)
    dtype = [torch.float32, torch.float32, torch.bfloat16, torch.float16][seed % 4]
    save(model.to(dtype), tmp_path / "model", FORMATS[seed % len(FORMATS)])
    nanolm.import_model(tmp_path / "model", tmp_path / "run")
    # Converting the model would leave its angles rounded.
    model = type(model).from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    loaded = load_run(str(tmp_path / "run"))
    tokens = torch.randint(VOCAB_SIZE, (2, LENGTH))
    with torch.no_grad():
        expected = model(tokens).logits
        assert torch.allclose(loaded.model(tokens), expected, atol=TOLERANCE, rtol=0)
        cache = loaded.model.make_cache()
        pieces = [loaded.model(tokens[:, n : n + 3], cache=cache) for n in range(0, LENGTH, 3)]
        assert torch.allclose(torch.cat(pieces, dim=1), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_import_continues_a_prompt_as_transformers(name: str, tmp_path: Path) -> None:
    key = "n_positions" if name == "gpt2" else "max_position_embeddings"
    model = make_model(name, seed=3, **{key: 256})
    save(model, tmp_path / "model", "safetensors")
    nanolm.import_model(tmp_path / "model", tmp_path / "run")
    loaded = load_run(str(tmp_path / "run"))
    prompt = torch.randint(VOCAB_SIZE, (8,))
    expected = model.generate(prompt[None], max_new_tokens=200, do_sample=False)[0, 8:]
    assert len(expected) == 200
    for use_cache in (True, False):
        found = sample(loaded.model, prompt, 200, context_length=256, temperature=0, use_cache=use_cache)
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_recorded_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(write_model(tmp_path, CONFIGS[name])).eval()
    with torch.no_grad():
        found = model(TOKENS_1x16).logits[0]
    assert found[[0, 7, 15], [3, 100, 256]].tolist() == pytest.approx(LOGITS[name], abs=2e-6)
