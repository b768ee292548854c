"""Argument checks shared by the operators; every message names what was wanted and what came."""

import math
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (int, torch.SymInt, np.integer)
_NUMBERS = (*_INTEGERS, float, torch.SymFloat, np.floating)


def check_tensor(op: str, name: str, value: object, *sizes: int | str, floating: bool = True) -> Tensor:
    """Return ``value`` as a tensor of these sizes; a name instead of a size leaves it free.

    Sizes are written into a string for a message only, so that they stay symbolic under torch.compile.

    Raises:
        TypeError: Not a tensor, or (with ``floating``) not of a floating-point dtype.
        ValueError: Another rank or another size.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor {_layout(sizes)}, got {type(value).__name__}")
    check_dense(op, name, value)
    if floating and value.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be floating point, got {value.dtype}")
    fits = value.dim() == len(sizes)
    for size, found in zip(sizes, value.shape, strict=False):
        fits = fits and (isinstance(size, str) or size == found)
    if not fits:
        raise ValueError(f"{op}: {name} must have shape {_layout(sizes)}, got {tuple(value.shape)}")
    return value


def check_dense(op: str, name: str, value: Tensor) -> None:
    """Raise TypeError for sparse, nested and MKL-DNN tensors, whose memory no kernel reads."""
    if value.is_nested or value.layout != torch.strided:
        found = "a nested tensor" if value.is_nested else f"one of layout {value.layout}"
        raise TypeError(f"{op}: {name} must be a dense tensor, got {found}")


def _layout(sizes: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, sizes))})"


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors lie on one device; those that are None do not count."""
    if len({tensor.device for tensor in tensors.values() if tensor is not None}) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items() if tensor is not None)
        raise ValueError(f"{op}: all tensors must lie on one device, got {found}")


def check_integer(op: str, name: str, value: object, *, least: int | None = None, most: int | None = None) -> None:
    """Raise TypeError unless ``value`` is an integer, ValueError unless it is from ``least`` to ``most``."""
    if not isinstance(value, _INTEGERS) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{op}: {name} must be at most {most}, got {value}")


def check_odd(op: str, name: str, value: int, *, most: int) -> None:
    """Raise TypeError unless ``value`` is an integer, ValueError unless it is positive, odd and at most ``most``."""
    check_integer(op, name, value, most=most)
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{op}: {name} must be odd and positive, got {value}")


def check_number(op: str, name: str, value: object, *, least: float = -math.inf, below: float | None = None) -> None:
    """Raise TypeError unless ``value`` is a number, ValueError if it is NaN, under ``least`` or not under ``below``."""
    if not isinstance(value, _NUMBERS) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    if not value >= least or (below is not None and value >= below):
        wanted = f"at least {least:g}" if below is None else f"at least {least:g} and less than {below:g}"
        raise ValueError(f"{op}: {name} must be {wanted}, got {value}")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen half precision to float32, the least precision in which operators reduce."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Switch autocast off for the device where it is on, or may be where a graph will run; meta tensors have none."""
    if device.type == "meta" or not (torch.is_autocast_enabled(device.type) or torch.compiler.is_compiling()):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
