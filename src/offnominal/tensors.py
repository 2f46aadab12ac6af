"""Tensors as images, without importing torch: whoever has one has imported it.

What training code holds is (C, H, W), often float32 on [0, 1], in batches from a data loader.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import ImageError

__all__ = ["as_array", "as_tensors", "is_module", "is_tensor", "no_gradients", "to_numpy"]

CHANNELS = (1, 3, 4)
_HALF_STEP = 0.5 / 255  # by so much an interpolation may overshoot and still round to 0 or 255


def is_tensor(value: object) -> bool:
    """Whether a value is a torch tensor."""
    kind = _of_torch("Tensor")
    return kind is not None and isinstance(value, kind)


def is_module(value: object) -> bool:
    """Whether a value is a network or a part of one."""
    nn = _of_torch("nn")
    kind = getattr(nn, "Module", None)
    return kind is not None and isinstance(value, kind)


def no_gradients() -> AbstractContextManager[Any]:
    """Inference mode, where there is anything that could keep gradients."""
    mode: AbstractContextManager[Any] = (_of_torch("inference_mode") or nullcontext)()
    return mode


def _of_torch(name: str) -> Any:
    """A name of torch's, or None: another thread may be importing it at this moment."""
    return getattr(sys.modules.get("torch"), name, None)


def to_numpy(values: Any) -> NDArray[Any]:
    """An array as it is, or what a tensor on any device holds; on a CPU they share memory."""
    if is_tensor(values):
        plain = values.detach().cpu()
        if "bfloat" in str(plain.dtype):  # which numpy does not know
            plain = plain.float()
        found: NDArray[Any] = plain.numpy()
        return found
    return np.asarray(values)


def as_tensors(arrays: Any) -> Any:
    """An array as a tensor over the same memory, or tuples and lists of them."""
    if isinstance(arrays, tuple | list):
        return type(arrays)(as_tensors(one) for one in arrays)
    from torch import from_numpy

    return from_numpy(arrays)


def as_array(tensor: Any, name: str) -> NDArray[Any]:
    """A tensor as an array with channels last; floats become 8 bits, integers stay as they are.

    Parameters
    ----------
    tensor : torch.Tensor
        (C, H, W) with 1, 3 or 4 channels, or (H, W), on any device; floats are on [0, 1].
    name : str
        For messages.

    Raises
    ------
    ImageError
        If the shape or the range of values is another.
    """
    shape = tuple(tensor.shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in CHANNELS):
        last = len(shape) == 3 and shape[2] in CHANNELS
        told = "move them to the front with permute(2, 0, 1)" if last else "a batch is (B, C, H, W)"
        raise ImageError(
            name, f"has the wrong shape; give (C, H, W) with 1, 3 or 4 channels first: {told}"
        )
    values = tensor.detach().cpu()
    if values.is_floating_point():
        values = values.float()  # numpy knows no bfloat16
    array: NDArray[Any] = values.numpy()
    if len(shape) == 3:
        array = array.transpose(1, 2, 0)
    return _eight_bits(array, name) if array.dtype.kind == "f" else array


def _eight_bits(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if not array.size:
        raise ImageError(name, "is empty; give an image")
    low, high = float(array.min()), float(array.max())
    if not (low >= -_HALF_STEP and high <= 1 + _HALF_STEP):  # nan among them
        if low < -_HALF_STEP:
            told = "leave Normalize out: a detector shifts and scales by itself"
        else:
            told = "divide by the largest value that there can be, or give uint8"
        if not np.isfinite([low, high]).all():
            told = "some are no numbers"
        raise ImageError(
            name,
            f"its values go from {low:.4g} to {high:.4g}, and floats are taken on [0, 1]: {told}",
        )
    eight: NDArray[np.uint8] = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return eight
