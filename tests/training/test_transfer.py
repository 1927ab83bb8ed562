import numpy as np
import pytest
import torch

from nanolm.data.batches import IGNORE_INDEX
from nanolm.training.transfer import pack, to_device


def arrays() -> list[np.ndarray]:
    """Views of one window, as `draw` returns them, and document numbers."""
    window = np.random.default_rng(0).integers(0, 2**31, (3, 6))
    targets = window[:, 1:].copy()
    targets[1, 2:] = IGNORE_INDEX
    return [window[:, :-1], targets, np.full((3, 5), 2**31 - 1)]


def test_packed_arrays_keep_their_values() -> None:
    packed = pack(arrays(), is_pinned=False)
    assert packed.dtype is torch.int32
    assert all(np.array_equal(tensor, array) for tensor, array in zip(packed.long(), arrays(), strict=True))


def test_cpu_shares_the_memory_of_arrays() -> None:
    given = arrays()
    tensors = to_device(given, torch.device("cpu"))
    assert [tensor.data_ptr() for tensor in tensors] == [array.ctypes.data for array in given]


def test_other_devices_receive_int64_tensors() -> None:
    tensors = to_device(arrays(), torch.device("meta"))
    assert [(tensor.dtype, tensor.shape) for tensor in tensors] == [(torch.int64, (3, 5))] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_receives_the_same_values() -> None:
    tensors = to_device(arrays(), torch.device("cuda"))
    assert all(np.array_equal(tensor.cpu(), array) for tensor, array in zip(tensors, arrays(), strict=True))
