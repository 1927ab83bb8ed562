import pytest
import torch

from nanolm.errors import SettingsError
from nanolm.training import compilation
from tests.helpers import make_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# GPT-2 124M with 16 sequences: more than 0.1 s per step by the estimate.
LARGE = ("size=gpt2", "size.context_length=1024", "trainer.batch_size=16", "model=gpt2")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("trainer.max_steps=1000", *LARGE), False),
        (("trainer.max_steps=5000", *LARGE), True),
        (("trainer.max_steps=1000",), False),
        (("trainer.max_steps=1000000", "size.n_layers=4"), True),
        (("trainer.max_minutes=2", "size.n_layers=4"), False),
        (("trainer.max_minutes=20", "size.n_layers=4"), True),
        (("trainer.max_steps=100000", "size.n_layers=4"), False),
        (("trainer.max_steps=100000", "size.n_layers=4", "trainer.gradient_accumulation=2"), True),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(overrides: tuple[str, ...], expected: bool) -> None:
    config = make_config(*overrides)
    assert compilation.pays(config, 50257, CUDA) == expected
    assert not compilation.pays(config, 50257, CPU)


def test_more_gpus_make_a_run_shorter() -> None:
    config = make_config("trainer.max_steps=5000", *LARGE)
    assert compilation.eager_seconds(config, 50257, n_ranks=2) == compilation.eager_seconds(config, 50257) / 2


def test_compile_without_a_compiler_is_refused_and_auto_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "find_missing", lambda device: "finds no C compiler")
    long = "trainer.max_steps=1000000"
    is_compiled, note = compilation.choose(make_config(long), 65, CUDA)
    assert (is_compiled, note) == (False, "trainer.compile=auto: eager mode, because torch.compile finds no C compiler")
    assert compilation.choose(make_config(long, "trainer.compile=false"), 65, CUDA) == (False, None)
    assert compilation.choose(make_config(), 65, CPU) == (False, None)
    for override, where in (("trainer.compile=true", "trainer.compile"), ("trainer.cuda_graphs=true", "cuda_graphs")):
        with pytest.raises(SettingsError, match=rf"finds no C compiler[\s\S]*{where}[\s\S]*trainer\.compile=false"):
            compilation.choose(make_config(override), 65, CUDA)


def test_cuda_graphs_are_compiled_and_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "find_missing", lambda device: None)
    config = make_config("trainer.cuda_graphs=true")
    assert compilation.choose(config, 65, CUDA) == (True, None)
    with pytest.raises(SettingsError, match=r"cuda_graphs=true needs an NVIDIA GPU, and the run is on cpu"):
        compilation.choose(config, 65, CPU)


@pytest.mark.parametrize(
    ("compiler", "has_triton", "capability", "expected"),
    [
        ("python", True, (8, 0), None),
        ("no-such-compiler", True, (8, 0), "finds no C compiler"),
        ("python", False, (8, 0), "needs Triton, which is not installed"),
        ("python", True, (6, 1), "needs a GPU of compute capability 7.0 or higher"),
    ],
)
def test_what_a_gpu_lacks_to_compile_is_found(
    compiler: str, has_triton: bool, capability: tuple[int, int], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if has_triton else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if name == "python" else None)
    assert compilation.find_missing(CUDA) == expected
