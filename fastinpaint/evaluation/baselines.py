"""Methods without a network to compare with. Each takes (H, W, 3) uint8 and (H, W) bool, True in the hole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from fastinpaint.extras import extra
from fastinpaint.inference.prepare import mirror_pad
from fastinpaint.models.blending import harmonic_continuation

with extra("opencv"):
    import cv2

Picture = npt.NDArray[np.uint8]
Filler = Callable[[Picture, npt.NDArray[np.bool_]], Picture]
RADIUS = 5  # pixels that OpenCV's methods look around; 3 to 10 differ by less than 0.2 dB on photographs


def telea(picture: Picture, hole: npt.NDArray[np.bool_]) -> Picture:
    """Fill by OpenCV's fast marching method (Telea 2004)."""
    filled = cv2.inpaint(picture, hole.astype(np.uint8), RADIUS, cv2.INPAINT_TELEA)
    return np.asarray(filled, np.uint8)


def navier_stokes(picture: Picture, hole: npt.NDArray[np.bool_]) -> Picture:
    """Fill by OpenCV's fluid dynamics method (Bertalmio, Bertozzi and Sapiro 2001)."""
    filled = cv2.inpaint(picture, hole.astype(np.uint8), RADIUS, cv2.INPAINT_NS)
    return np.asarray(filled, np.uint8)


def biharmonic(picture: Picture, hole: npt.NDArray[np.bool_]) -> Picture:
    """Fill by scikit-image's biharmonic equations: smooth, and slow for large holes.

    Raises:
        ImportError: scikit-image is not installed.
    """
    with extra("evaluate"):
        from skimage.restoration import inpaint_biharmonic
    solved = inpaint_biharmonic(picture, hole, split_into_regions=True, channel_axis=-1)
    filled = picture.copy()
    filled[hole] = np.clip(np.asarray(solved)[hole] * 255, 0, 255).round()
    return filled


def harmonic(picture: Picture, hole: npt.NDArray[np.bool_]) -> Picture:
    """Continue the known pixels by Laplace's equation: what `poisson_blend` makes of a prediction without gradients."""
    height, width = hole.shape
    values = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    known = torch.from_numpy(~hole)[None, None]
    continued = harmonic_continuation(mirror_pad(values), mirror_pad(known))[0, :, :height, :width]
    filled = picture.copy()
    filled[hole] = continued.permute(1, 2, 0).numpy().round().astype(np.uint8)[hole]
    return filled


def mean_color(picture: Picture, hole: npt.NDArray[np.bool_]) -> Picture:
    """Fill with the mean of the known pixels."""
    filled = picture.copy()
    filled[hole] = picture[~hole].mean(0).round()
    return filled


BASELINES: dict[str, Filler] = {
    "telea": telea,
    "navier-stokes": navier_stokes,
    "biharmonic": biharmonic,
    "harmonic": harmonic,
    "mean-colour": mean_color,
}
LABELS = {
    "telea": "Telea",
    "navier-stokes": "Navier-Stokes",
    "biharmonic": "biharmonic",
    "harmonic": "harmonic",
    "mean-colour": "mean colour",
}
SLOW = ("biharmonic",)
