"""Where, and in which number type and layout, a generator fills: what its processor computes fast."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch

from fastinpaint.ops._backend import has_native

Precision = Literal["auto", "float32", "bfloat16"]
_CPU_FEATURES = ("avx512_bf16", "amx_bf16")  # in torch's names


def usable_device(wanted: str | torch.device | None) -> torch.device:
    """Return a device after making a tensor there; None is CUDA if there is some, else the CPU.

    Raises:
        ValueError: No such device, or one that cannot be used.
    """
    device = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
    except Exception as error:  # torch raises many types for devices that it lacks
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(f"device {device} cannot be used: {reason}") from error
    if found.type == "meta":
        raise ValueError(f"device {device} cannot be used: it computes no values")
    return found


def precision_of(wanted: Precision, device: torch.device) -> torch.dtype:
    """Return the number type that ``wanted`` stands for on ``device``.

    ``"auto"`` is bfloat16 on a GPU that computes it (compute capability 8.0 and above) and on a CPU with AVX512-BF16 or
    AMX, else float32.

    Raises:
        ValueError: Another precision.
    """
    if wanted not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {wanted!r}")
    half = wanted == "bfloat16" or (wanted == "auto" and has_fast_bfloat16(device))
    return torch.bfloat16 if half else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 have instructions of their own on ``device``."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":  # torch before 2.11 lists no capabilities
        features: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(features.get(name, False) for name in _CPU_FEATURES)
    return False


def layout_on(device: torch.device) -> torch.memory_format:
    """Layout of the weights, and so of the maps: channels-last, for which convolutions are made.

    Contiguous where instance norm is left to PyTorch, whose own copies channels-last maps.
    """
    fused = device.type == "cuda" or (device.type == "cpu" and has_native("instance_norm"))
    return torch.channels_last if fused else torch.contiguous_format


def computing_in(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Run the networks of a block in ``precision`` by autocast: statistics and attention's logits stay float32."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)
