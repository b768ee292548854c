"""Fill the hole of a picture, whatever kind of object it is."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastinpaint.inference.prepare import blind_input, mirror_pad, shrink
from fastinpaint.models.generator import InpaintGenerator

Picture = TypeVar("Picture", Image.Image, npt.NDArray[np.uint8], Tensor)
Mask = Image.Image | npt.NDArray[Any] | Tensor

_GRAY = (0.2125, 0.7154, 0.0721)  # as rgb_to_gray weighs red, green and blue


class Inpainter:
    """A generator ready to fill pictures.

    The result depends on the known pixels only: what the picture holds inside the hole is never looked at.

    Args:
        generator: Trained generator; it is moved to ``device`` and put into evaluation mode.
        device: Where it runs; None takes CUDA if there is some, else the CPU.
        max_side: Pictures with a longer side (pixels) are filled at this size and the filling is enlarged, because
            attention grows with the square of the area; the known pixels stay as they are. 0 never shrinks.

    Raises:
        ValueError: ``max_side`` is negative.
    """

    def __init__(
        self, generator: InpaintGenerator, device: str | torch.device | None = None, max_side: int = 512
    ) -> None:
        if max_side < 0:
            raise ValueError(f"max_side must be at least 0 pixels, got {max_side}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.generator = generator.to(self.device).eval()
        self.max_side = max_side

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], device: str | torch.device | None = None, max_side: int = 512
    ) -> Inpainter:
        """Load a folder that ``save_pretrained`` or ``fastinpaint convert`` wrote."""
        return cls(InpaintGenerator.from_pretrained(path), device, max_side)

    def __call__(self, image: Picture, mask: Mask) -> Picture:
        """Fill the hole.

        Args:
            image: One of
                a PIL image: modes L, RGB, LA and RGBA come back in their mode with alpha as it was, others as RGB;
                a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the fourth channel being alpha;
                a floating-point tensor (B, 3, H, W) in [0, 1], on any device.
            mask: The hole, of the image's height and width: a PIL image (white, above 127, is hole), an array
                (H, W) or (H, W, 1) of bool or of uint8 above 127, or a tensor (H, W), (1, 1, H, W) or (B, 1, H, W) of
                bool or of values above 0.5. An empty hole returns the picture as it is.

        Returns:
            A new object of the kind, size and precision of ``image``, equal to it outside the hole.

        Raises:
            TypeError: An image or mask of another kind or dtype.
            ValueError: Sizes that differ, values out of range, or a mask that leaves nothing known.
        """
        if isinstance(image, Image.Image):
            return self._fill_pil(image, mask)
        if isinstance(image, np.ndarray):
            return self._fill_array(image, mask)
        if isinstance(image, Tensor):
            return self._fill_tensor(image, hole_of(mask))
        raise TypeError(f"image must be a PIL image, a uint8 array or a tensor, got {type(image).__name__}")

    def _fill_pil(self, image: Image.Image, mask: Mask) -> Image.Image:
        if image.mode.startswith("I") or image.mode == "F":
            raise TypeError(f"pictures of 8 bits per channel are wanted, got PIL mode {image.mode}")
        alpha = image.has_transparency_data
        work = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGBA" if alpha else "RGB")
        filled = Image.fromarray(self._fill_array(np.asarray(work), mask))
        filled = filled.convert(image.mode) if image.mode == "LA" else filled
        filled.info = dict(image.info)
        return filled

    def _fill_array(self, image: npt.NDArray[np.uint8], mask: Mask) -> npt.NDArray[np.uint8]:
        channels = 1 if image.ndim == 2 else image.shape[-1]
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4):
            found = f"{image.dtype} {image.shape}"
            raise TypeError(f"an image array must be uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {found}")
        pixels = image.reshape(*image.shape[:2], channels)
        color = np.broadcast_to(pixels[..., :3], (*pixels.shape[:2], 3))
        hole = hole_of(mask)
        signal = torch.from_numpy(np.array(color)).permute(2, 0, 1)[None].float() / 255
        filled = self._fill_tensor(signal, hole)[0].permute(1, 2, 0).numpy()  # (H, W, 3) in [0, 1]
        if channels == 1:
            filled = (filled @ np.asarray(_GRAY, np.float32))[..., None]
        rounded = (filled * 255 + 0.5).astype(np.uint8)
        result = pixels.copy()
        inside = hole[0, 0].cpu().numpy()
        result[..., :3][inside] = rounded[inside]
        return result.reshape(image.shape)

    def _fill_tensor(self, image: Tensor, hole: Tensor) -> Tensor:
        _check(image, hole)
        if not hole.any():
            return image.clone()
        hole = hole.to(image.device).expand(image.shape[0], -1, -1, -1)
        filled = self._predict(image.detach().to(self.device, torch.float32) * 2 - 1, hole.to(self.device).float())
        return torch.where(hole, ((filled + 1) / 2).to(image.device, image.dtype), image.detach())

    @torch.no_grad()
    def _predict(self, image: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], (B, 1, H, W) -> (B, 3, H, W) in [-1, 1], right in the hole."""
        height, width = image.shape[-2:]
        small, small_mask = shrink(image, mask, self.max_side) if self.max_side else (image, mask)
        inner = small.shape[-2:]
        inputs = blind_input(mirror_pad(small), mirror_pad(small_mask))
        result = self.generator(inputs).images[0][..., : inner[0], : inner[1]].clamp(-1, 1)
        if inner == (height, width):
            return result
        complete = torch.where(small_mask > 0.5, result, small)
        return F.interpolate(complete, (height, width), mode="bicubic", align_corners=False).clamp(-1, 1)


def hole_of(mask: Mask) -> Tensor:
    """Read a mask of any accepted kind as a bool tensor (B, 1, H, W), True in the hole.

    Raises:
        TypeError: Another kind or dtype.
        ValueError: Another shape, or uint8 values of 0 and 1 only, which white-above-127 would read as no hole.
    """
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"))
    if isinstance(mask, np.ndarray):
        return _hole_of_array(mask)
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a PIL image, an array or a tensor, got {type(mask).__name__}")
    shaped = mask[None, None] if mask.dim() == 2 else mask
    if shaped.dim() != 4 or shaped.shape[1] != 1:
        raise ValueError(f"a mask tensor must be (H, W) or (B, 1, H, W), got {tuple(mask.shape)}")
    if shaped.dtype != torch.bool and not shaped.is_floating_point():
        raise TypeError(f"a mask tensor must be bool or floating point, got {mask.dtype}")
    return shaped if shaped.dtype == torch.bool else shaped > 0.5


def _hole_of_array(mask: npt.NDArray[Any]) -> Tensor:
    if mask.dtype not in (np.bool_, np.uint8):
        raise TypeError(f"a mask array must be bool or uint8 (above 127 is hole), got {mask.dtype}")
    flat = mask[..., 0] if mask.ndim == 3 and mask.shape[-1] == 1 else mask
    if flat.ndim != 2:
        raise ValueError(f"a mask array must be (H, W) or (H, W, 1), got {mask.shape}")
    if flat.dtype == np.uint8 and flat.max(initial=0) == 1:
        raise ValueError("a uint8 mask is hole above 127, but this one holds 0 and 1 only: give bool, or 0 and 255")
    return torch.from_numpy(np.array(flat if flat.dtype == np.bool_ else flat > 127))[None, None]


def _check(image: Tensor, hole: Tensor) -> None:
    if not image.is_floating_point():
        raise TypeError(f"an image tensor must be floating point in [0, 1], got {image.dtype}")
    if image.dim() != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise ValueError(f"an image tensor must be (B, 3, H, W) and not empty, got {tuple(image.shape)}")
    if hole.shape[-2:] != image.shape[-2:]:
        wanted, found = "x".join(map(str, image.shape[-2:])), "x".join(map(str, hole.shape[-2:]))
        raise ValueError(f"the mask must have the image's height and width {wanted}, got {found}")
    if hole.shape[0] not in (1, image.shape[0]):
        raise ValueError(f"wanted one mask, or one for each of {image.shape[0]} images, got {hole.shape[0]}")
    if hole.flatten(1).all(1).any():
        raise ValueError("the mask covers the whole picture: nothing known is left to fill it from")
    known = image.detach()[~hole.to(image.device).expand_as(image)]
    low, high = float(known.min()), float(known.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"known pixels of an image tensor must be in [0, 1], got [{low:.4g}, {high:.4g}]")
