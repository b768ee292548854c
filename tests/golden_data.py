"""Outputs of the original system, and how they are compared."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastinpaint.checkpoint.tensorflow import read_tf_checkpoint
from fastinpaint.models.vgg import CONVOLUTIONS, VGG19Features

FOLDER = Path(__file__).parent / "golden"
CHECKPOINT = FOLDER / "tf_checkpoint_w16" / "InpaintModel.model-7"


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of one golden file; images are NHWC, kernels HWIO."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def golden_variables() -> dict[str, np.ndarray]:
    """The variables of the original system's checkpoint; without the extra ``convert`` the test is skipped."""
    pytest.importorskip("google_crc32c", reason="needs the extra convert")
    return read_tf_checkpoint(CHECKPOINT)


def nchw(array: np.ndarray) -> Tensor:
    """(B, H, W, C) array -> contiguous (B, C, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 error."""
    return ((found - wanted).norm() / wanted.norm()).item()


def parameter(array: np.ndarray) -> Tensor:
    """A variable in torch layout: kernels (kh, kw, in, out) -> (out, in, kh, kw), or with in and out swapped."""
    return torch.from_numpy(array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array)


def load_golden(layer: torch.nn.Module, arrays: dict[str, np.ndarray], names: dict[str, str]) -> None:
    """Give ``layer`` its golden weights; ``names`` maps each entry of its state dict to a variable."""
    layer.load_state_dict({target: parameter(arrays[f"w:op/{source}"]) for target, source in names.items()})


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The draw that stands for a stored weight of VGG-19, float32."""
    seed = zlib.crc32(f"{name}|0".encode())
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def drawn_vgg_layer(name: str, incoming: int, outgoing: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (width, height, in, out) and bias (1, out) of one convolution, as a MatConvNet file stores them."""
    scale = np.float32(np.sqrt(2 / (9 * incoming)))
    return drawn(f"{name}/weights", (3, 3, incoming, outgoing)) * scale, 0.05 * drawn(f"{name}/bias", (1, outgoing))


def golden_vgg() -> VGG19Features:
    """VGG-19 with the drawn weights."""
    state = {}
    for name, (index, incoming, outgoing) in CONVOLUTIONS.items():
        kernel, bias = drawn_vgg_layer(name, incoming, outgoing)
        state[f"features.{index}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 1, 0).copy())
        state[f"features.{index}.bias"] = torch.from_numpy(bias[0])
    features = VGG19Features()
    features.load_state_dict(state)
    return features
