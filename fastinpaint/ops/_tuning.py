"""Tuning of the Triton kernels: whether a device has any, what was chosen, where it is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fastinpaint.ops import _backend

if TYPE_CHECKING:
    from fastinpaint_kernels._launch import Choice as Choice  # noqa: PLC0414 - for other rooms

_SWITCH = "FASTINPAINT_TUNE"


def tuning_gap(device: torch.device) -> str | None:
    """Say why no Triton kernel runs on ``device``; None where they do."""
    return _backend._triton_gap(device.type, device.index, (torch.float32,))


def choices() -> list[Choice]:
    """Return what this process has chosen so far, measured or found on disk."""
    from fastinpaint_kernels import _launch

    return _launch.choices()


def cache_folder() -> str:
    """Return the folder where Triton keeps compiled kernels and the choices made by tuning."""
    import triton

    return str(triton.knobs.cache.dir)


@contextmanager
def tuning_on() -> Iterator[None]:
    """Let kernels be tuned within the block, whatever FASTINPAINT_TUNE says outside."""
    before = os.environ.pop(_SWITCH, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_SWITCH] = before
