"""Emulation of two CUDA devices: shapes, dtypes, devices and live bytes are real, values are not.

Tensors are fake (`torch._subclasses.FakeTensorMode`), so that a step of a large model takes a second and no memory. A
small library (fake_cuda.cpp) registers CUDA in a CPU build of torch, so that autograd, autocast, GradScaler and fused
optimizers take their CUDA code paths. Kernels, speed and the choice of an attention kernel are not emulated.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib.util
import subprocess
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Operators that synchronize, because the host needs the shape or the value of their result.
SYNCHRONIZING = ("aten.nonzero.default", "aten.equal.default", "aten.masked_select.default")

SOURCE = Path(__file__).with_name("fake_cuda.cpp")


class CannotEmulateError(Exception):
    """The library cannot be built on this machine."""


def build(folder: Path) -> Path:
    """Compile the library into a folder, unless it was compiled for this torch before, and return its path.

    Raises:
        CannotEmulateError: there is no compiler, or torch was built with CUDA or has no headers.
    """
    import torch

    if torch.version.cuda is not None:
        raise CannotEmulateError(f"torch {torch.__version__} was built with CUDA")
    library = folder / f"fake_cuda-{torch.__version__}-{SOURCE.stat().st_mtime_ns}.so"
    if library.exists():
        return library
    root = Path(torch.__file__).parent
    command = [
        "g++",
        *("-O1", "-fPIC", "-shared", "-std=c++20"),
        *(f"-I{root / 'include' / part}" for part in ("", "torch/csrc/api/include")),
        str(SOURCE),
        *("-o", str(library)),
        *(f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotEmulateError(f"g++: {error}") from error
    if done.returncode:
        raise CannotEmulateError(f"g++ failed: {done.stderr[:500]}")
    return library


def load(library: Path) -> None:
    """Load the library; call this before torch is imported."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "lib"
    for name in ("libgomp.so.1", "libc10.so", "libtorch_cpu.so", "libtorch.so"):
        with contextlib.suppress(OSError):  # torch may use the system's libgomp
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def pretend(name: str = "NVIDIA H100 80GB HBM3", capability: tuple[int, int] = (9, 0)) -> None:
    """Patch torch.cuda to report two GPUs of this name, and attention to use CUDA operators."""
    import torch
    import torch.nn.functional as F

    patches: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_name": lambda device=None: name,
        "get_device_capability": lambda device=None: capability,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: None,
        "set_device": lambda device: None,
        "current_device": lambda: 0,
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": None,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
    }
    for name_of_function, function in patches.items():
        setattr(torch.cuda, name_of_function, function)
    F.scaled_dot_product_attention = _attention_of_cuda(F.scaled_dot_product_attention)
    # Fake tensors know the other fused optimizers.
    torch.library.impl("aten::_fused_sgd_", "Meta")(lambda *arguments, **settings: None)


def move(model: Any, mode: Any, device: Any) -> Any:
    """Move a model to a device as fake tensors of a mode; shared parameters stay shared."""
    import torch

    moved: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in moved:
                moved[id(parameter)] = torch.nn.Parameter(mode.from_tensor(parameter.detach()).to(device))
            if parameter is not None:
                module._parameters[name] = moved[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer).to(device)
    return model


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    import torch

    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", False)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before)


def _attention_of_cuda(on_cpu: Callable[..., Any]) -> Callable[..., Any]:
    """Return attention that uses flash kernels in half precision without a mask, memory-efficient ones otherwise."""
    import torch

    def attention(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if not q.is_cuda:
            return on_cpu(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal)
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            q, k, v = (tensor.to(dtype) for tensor in (q, k, v))
            if attn_mask is not None and attn_mask.dtype is not torch.bool:
                attn_mask = attn_mask.to(dtype)
        assert q.dtype == k.dtype == v.dtype, f"attention of {q.dtype}, {k.dtype} and {v.dtype}"
        with _without_autocast():
            if attn_mask is None and q.dtype in (torch.bfloat16, torch.float16) and q.size(-1) == v.size(-1):
                return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]
            if attn_mask is not None:
                if attn_mask.dtype is torch.bool:
                    attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, -torch.inf)
                assert attn_mask.dtype == q.dtype, f"a mask of {attn_mask.dtype} for queries of {q.dtype}"
                attn_mask = attn_mask.expand(*q.shape[:3], k.size(2))
            if q.size(-1) != v.size(-1):  # no such kernel in fake_cuda.cpp; the formula has the same devices and dtypes
                scores = q @ k.transpose(-2, -1)
                return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v
            is_kept = torch.is_grad_enabled() and q.requires_grad
            operator = torch.ops.aten._scaled_dot_product_efficient_attention
            return operator(q, k, v, attn_mask, is_kept, dropout_p, is_causal)[0]

    return attention


def fuse_rms_norm() -> None:
    """Make RMSNorm one operator that stores its input and a scale per vector, in fp32 under autocast, as on CUDA.

    A CPU build decomposes it, and stores copies in fp32.
    """
    import torch
    import torch.nn.functional as F

    on_cpu = F.rms_norm

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
            ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
            return torch.empty_like(x)

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            x, weight, _ = ctx.saved_tensors
            return torch.empty_like(x), None if weight is None else torch.empty_like(weight)

    def rms_norm(x: torch.Tensor, shape: Any, weight: torch.Tensor | None = None, eps: float | None = None) -> Any:
        if not x.is_cuda:
            return on_cpu(x, shape, weight, eps)
        return Fused.apply(x.float() if torch.is_autocast_enabled("cuda") else x, weight)

    F.rms_norm = rms_norm


def kernel_of_flex(q: Any, k: Any, v: Any, score_mod: Any = None, block_mask: Any = None) -> Any:
    """Replace compiled FlexAttention: check the arguments as torch does, and trace the functions among them.

    Raises:
        ValueError, NotImplementedError: as in flex_attention and its kernel.
    """
    import torch

    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"expected query, key and value to have the same dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device == block_mask.kv_num_blocks.device:
        raise ValueError(f"expected q/k/v and block_mask on one device, got {q.device} and {block_mask.kv_num_blocks}")
    if min(q.size(-1), v.size(-1)) < 16:
        raise NotImplementedError("head widths under 16")
    zero = torch.zeros(1, dtype=torch.int64, device=q.device)
    scores = q @ k.transpose(-2, -1)
    if score_mod is not None:
        scores = scores + score_mod(torch.zeros(1, device=q.device), zero, zero, zero, zero).to(scores.dtype)
    block_mask.mask_mod(zero, zero, zero, zero)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def watch(wide: int | None = None, n_columns: int | None = None, counts_bytes: bool = False) -> Any:
    """Return a `TorchDispatchMode` that counts synchronizations and live bytes on CUDA devices.

    Enter it inside FakeTensorMode. Values that the host reads are 1.

    Args:
        wide: number of elements of a tensor of logits; fp32 tensors of that size are counted as wide.
        n_columns: size of the last dimension of a wide tensor.
        counts_bytes: whether to count live bytes.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def tensors_of(tree: Any) -> list[torch.Tensor]:
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.syncs: collections.Counter[str] = collections.Counter()
            self.wide: collections.Counter[str] = collections.Counter()
            self.live = self.peak = 0
            self.at_peak: list[tuple[int, str, tuple[int, ...], torch.dtype]] = []
            self._storages: dict[int, tuple[int, str, tuple[int, ...], torch.dtype]] = {}

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(func)
            if name == "aten._local_scalar_dense.default":
                if args[0].is_cuda:
                    self.syncs[name] += 1
                return 1.0 if args[0].is_floating_point() else 1
            outputs = func(*args, **(kwargs or {}))
            results = [outputs] if isinstance(outputs, torch.Tensor) else tensors_of(outputs)
            is_fetch = name == "aten._to_copy.default" and args[0].is_cuda and not results[0].is_cuda
            if is_fetch or name in SYNCHRONIZING:
                self.syncs[name] += 1
            for tensor in results:
                if tensor.is_cuda:
                    self._track(tensor, name)
            return outputs

        def _track(self, tensor: torch.Tensor, name: str) -> None:
            is_wide = tensor.numel() == wide and tensor.shape[-1:] == (n_columns,)
            if not (is_wide or counts_bytes):
                return
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._storages:
                return
            if is_wide and tensor.dtype is torch.float32:
                self.wide[name] += 1
            self._storages[key] = (size, name, tuple(tensor.shape), tensor.dtype)
            self.live += size
            if self.live > self.peak:
                self.peak, self.at_peak = self.live, list(self._storages.values())
            weakref.finalize(storage, self._forget, key, size)

        def _forget(self, key: int, size: int) -> None:
            if self._storages.pop(key, None) is not None:
                self.live -= size

    return Watch()
