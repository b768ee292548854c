"""Argument checks shared by the operators; every message names what was wanted and what came."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_tensor(op: str, name: str, value: object, layout: str, *, floating: bool = True) -> Tensor:
    """Return ``value`` as a tensor of the rank that ``layout`` spells, such as ``"(B, 3, H, W)"``.

    Number entries in ``layout`` are exact sizes; names are free sizes.

    Raises:
        TypeError: Not a tensor, or (with ``floating``) not of a floating-point dtype.
        ValueError: Another rank or another exact size.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor {layout}, got {type(value).__name__}")
    if floating and value.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be floating point, got {value.dtype}")
    wanted = layout.strip("()").split(", ")
    exact = all(not size.isdigit() or int(size) == found for size, found in zip(wanted, value.shape, strict=False))
    if len(wanted) != value.dim() or not exact:
        raise ValueError(f"{op}: {name} must have shape {layout}, got {tuple(value.shape)}")
    return value


def check_same_device(op: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors lie on one device."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"{op}: all tensors must lie on one device, got {found}")


def check_odd(op: str, name: str, value: int) -> None:
    """Raise ValueError unless ``value`` is a positive odd integer."""
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{op}: {name} must be odd and positive, got {value}")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen half precision to float32, the least precision in which operators reduce."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
