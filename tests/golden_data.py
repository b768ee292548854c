"""Outputs of the original system, and how they are compared."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of one golden file; images are NHWC, kernels HWIO."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def nchw(array: np.ndarray) -> Tensor:
    """(B, H, W, C) array -> contiguous (B, C, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 error."""
    return ((found - wanted).norm() / wanted.norm()).item()
