import pytest
import torch

from nanolm.compose import config_folder
from nanolm.model import count, memory_estimate
from nanolm.model.build import build
from nanolm.model.loss import next_token_loss
from nanolm.training.optimizers import build as optimizers
from tests.helpers import make_config

# Models with a formula; the size of an n-gram model depends on its text.
MODELS = sorted(path.stem for path in config_folder().glob("model/*.yaml") if path.stem != "ngram")
TRANSFORMERS = ["gpt", "gpt2", "gpt3"]
OPTIMIZERS = sorted(path.stem for path in config_folder().glob("optimizer/*.yaml"))
SHAPED = [
    *MODELS,
    "gpt size.d_key=6 size.d_value=20 size.d_ff=13",
    "gpt model.activation=swiglu",
    "gpt model.feed_forward=one_layer",
    "gpt model.attention=uniform model.positions=learned",
    "mlp model.direct=true size.d_ff=60",
    "rnn model.cell=gru",
]
# Optimizers whose state depends on the shapes of the parameters.
BY_SHAPE = ("muon", "adafactor")
STEPPED = [
    (model, optimizer)
    for model in SHAPED
    for optimizer in (*OPTIMIZERS, "sgd optimizer.momentum=0")
    if model == "gpt" or optimizer in BY_SHAPE
] + [("gpt", "muon optimizer.orthogonalize_every=2 optimizer.normuon_beta2=0.9")]


@pytest.mark.parametrize(("model", "optimizer"), STEPPED)
def test_state_memory_equals_the_tensors_of_a_step(model: str, optimizer: str) -> None:
    config = make_config(*f"model={model} optimizer={optimizer} size.d_model=32".split())
    built = build(config, 65)
    opt = optimizers.build(config.optimizer, built)
    tokens = torch.arange(2 * 65).view(2, 65) % 65
    next_token_loss(built(tokens[:, :-1]), tokens[:, 1:]).backward()
    opt.step()
    buffers = [
        value
        for state in opt.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name != "step"
    ]
    gradients = [parameter.grad for parameter in built.parameters() if parameter.grad is not None]
    found = {
        part.name: part.amount
        for part in memory_estimate.state_memory(config, count.total(count.parameters(config, 65)), 65)
    }
    assert found == {
        "weights": sum(parameter.nbytes for parameter in built.parameters()),
        "gradients": sum(gradient.nbytes for gradient in gradients),
        "optimizer": sum(buffer.nbytes for buffer in buffers),
    }


def test_state_memory_prints_the_formulas_of_shaped_optimizers() -> None:
    formulas = {}
    for optimizer in ("muon", "adafactor"):
        config = make_config("model=gpt2", f"optimizer={optimizer}")
        formulas[optimizer] = memory_estimate.state_memory(config, 1000, 65)[-1].formula
    assert formulas == {
        "muon": "8 P - 48 N C^2",
        "adafactor": "4 P - 48 N C^2 - 4 V C - 4 T C + 64 N C + 4 V + 8 C + 4 T",
    }


@pytest.mark.parametrize("vocab_size", [65, 2_000])
@pytest.mark.parametrize("model", [*TRANSFORMERS, "mlp", "rnn", "rnn model.cell=gru model.dropout=0.2"])
def test_activation_memory_is_close_to_saved_tensors(model: str, vocab_size: int) -> None:
    config = make_config(*f"model={model}".split(), "trainer.batch_size=4")
    built = build(config, vocab_size)
    weights = {parameter.data_ptr() for parameter in built.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(vocab_size, (4, 65))
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        next_token_loss(built(tokens[:, :-1]), tokens[:, 1:])
    found = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    found += 2 * 4 * vocab_size * tokens[:, 1:].numel()  # gradients of the loss, allocated by the backward pass
    assert found == pytest.approx(memory_estimate.activation_memory(config, vocab_size).amount, rel=0.25)


def test_activation_memory_depends_on_micro_batch_and_format() -> None:
    def found(*overrides: str) -> int:
        return memory_estimate.activation_memory(make_config("model=gpt2", *overrides), 65).amount

    assert found("trainer.gradient_accumulation=4") * 4 == found()
    assert found("trainer.precision=bf16") < found("trainer.precision=fp32") == found()
    assert memory_estimate.activation_memory(make_config("model=gpt2"), 65, "bf16").amount == found(
        "trainer.precision=bf16"
    )
    part = memory_estimate.activation_memory(make_config("model=gpt2"), 65)
    assert part == count.Part(
        "activations",
        "B T (64 N C + 8 C + 12 V)",
        16 * 64 * (64 * 4 * 128 + 8 * 128 + 12 * 65),
        16 * 64 * 64 * 4 * 128 // 4,
    )


def test_peak_memory_depends_on_micro_batches() -> None:
    def found(*overrides: str) -> int:
        return memory_estimate.peak_memory(make_config("model=gpt2", "optimizer=adamw", *overrides), 10**6, 65)

    activations = memory_estimate.activation_memory(make_config("model=gpt2"), 65).amount
    assert found() == 12 * 10**6 + activations, "weights, two moments and activations; gradients are allocated later"
    assert found("trainer.gradient_accumulation=4") == 16 * 10**6 + activations // 4
    assert found("trainer.batch_size=1", "size.context_length=8") == 16 * 10**6, "the gradients are larger"
