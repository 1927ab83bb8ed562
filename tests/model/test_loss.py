import pytest
import torch
import torch.nn.functional as F

from nanolm.data.batches import IGNORE_INDEX
from nanolm.model import loss, loss_chunks
from nanolm.model.build import build
from tests.helpers import make_config


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_chunks, "LOGITS_PER_CHUNK", 5 * 50)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("has_bias", "softcap", "dtype"), [(False, None, None), (True, 2.0, None), (True, None, torch.bfloat16)]
)
def test_chunked_loss_equals_the_loss_of_all_logits(
    reduction: loss.Reduction, has_bias: bool, softcap: float | None, dtype: torch.dtype | None
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((3, 6, 8), (50, 8), (50,)))
    targets = torch.randint(50, (3, 6), generator=generator)
    targets[0, 2:5] = IGNORE_INDEX
    found = []
    for is_chunked in (True, False):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)][: 2 + has_bias]
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            head = (*inputs, None)[:3]
            if is_chunked:
                value = loss.chunked_loss(*head, targets, reduction, softcap)
            else:
                value = loss.next_token_loss(loss.cap_logits(F.linear(*head), softcap), targets, reduction)
            (3 * value).backward()
        assert value.dtype is torch.float32
        found.append([value, *(tensor.grad for tensor in inputs)])
    # In bf16 gradients are rounded to 8 bits.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is None else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(*found, **tolerance)


@pytest.mark.usefixtures("small_chunks")
def test_chunked_loss_of_no_target_is_that_of_all_logits() -> None:
    x, weight, targets = torch.ones(1, 9, 8), torch.ones(50, 8), torch.full((1, 9), IGNORE_INDEX)
    assert loss.chunked_loss(x, weight, None, targets).isnan()
    assert loss.chunked_loss(x, weight, None, targets, "sum") == 0


@pytest.mark.parametrize("model", ["gpt", "gpt2", "gpt model.logit_softcap=3"])
def test_loss_of_a_transformer_is_that_of_its_logits(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(make_config(*f"model={model}".split(), "size.n_layers=1", "size.context_length=16"), 300)
    tokens = torch.randint(300, (2, 17), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = loss.next_token_loss(built(inputs), targets)
    assert built(inputs, targets_BxT=targets, reduction="mean") == expected, "few logits are computed at once"
    monkeypatch.setattr(loss_chunks, "LOGITS_PER_CHUNK", 7 * 300)
    assert loss.is_chunked(32, built.unembedding[0])
    torch.testing.assert_close(built(inputs, targets_BxT=targets, reduction="mean"), expected)
    last = built(inputs, targets_BxT=targets[:, -5:], reduction="sum")
    torch.testing.assert_close(last, loss.next_token_loss(built(inputs)[:, -5:], targets[:, -5:], "sum"))


@pytest.mark.parametrize(("n_positions", "vocab_size"), [(2**25 // 512, 512), (10**6, 65)])
def test_small_logits_and_small_vocabularies_are_not_chunked(n_positions: int, vocab_size: int) -> None:
    assert not loss.is_chunked(n_positions, torch.empty(vocab_size, 128))
    assert loss.is_chunked(2**25 // 512 + 1, torch.empty(512, 128))
