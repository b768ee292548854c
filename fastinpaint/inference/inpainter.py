"""Fill the hole of a picture, whatever kind of object it is."""

from __future__ import annotations

import os
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastinpaint.inference.prepare import mirror_pad, shrink
from fastinpaint.inference.regions import SIZE, Box, Hole, fill_region, plan_regions
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.inputs import assemble_known_input

Picture = TypeVar("Picture", Image.Image, npt.NDArray[np.uint8], Tensor)
Mask = Image.Image | npt.NDArray[Any] | Tensor
Strategy = Literal["crop", "resize", "original"]

_GRAY = (0.2125, 0.7154, 0.0721)  # as rgb_to_gray weighs red, green and blue


class Inpainter:
    """A generator ready to fill pictures.

    The result depends on the known pixels only: what the picture holds inside the hole is never looked at.

    Args:
        generator: Trained generator; it is moved to ``device`` and put into evaluation mode.
        device: Where it runs; None takes CUDA if there is some, else the CPU.
        max_side: Pictures with a longer side (pixels) are large; others are filled whole, at their size. 0: none is.
        strategy: What happens to large pictures.
            ``"crop"``: around each hole a region at full size is filled, of at least 256 pixels a side and with a
            margin of at least 64, so that a filling is as sharp as its surroundings and memory follows the holes.
            Regions that overlap are merged; one larger than ``max_side`` (or 256) is filled by tiles, inside large
            holes coarse to fine.
            ``"resize"``: the whole picture is filled with ``max_side`` as its longer side, and the filling enlarged.
            ``"original"``: the whole picture is filled at its size; attention grows with the square of the area.

    Raises:
        ValueError: ``max_side`` is negative, or another strategy.
    """

    def __init__(
        self,
        generator: InpaintGenerator,
        device: str | torch.device | None = None,
        max_side: int = 512,
        strategy: Strategy = "crop",
    ) -> None:
        if max_side < 0:
            raise ValueError(f"max_side must be at least 0 pixels, got {max_side}")
        if strategy not in get_args(Strategy):
            raise ValueError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.generator = generator.to(self.device).eval()
        self.max_side = max_side
        self.strategy = strategy

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device | None = None,
        max_side: int = 512,
        strategy: Strategy = "crop",
    ) -> Inpainter:
        """Load a folder that ``save_pretrained`` or ``fastinpaint convert`` wrote, or a model that ships (``"small"``).

        ``"user/repository"`` is a model on the Hugging Face Hub (extra ``hub``). The model computes in float32,
        whatever its weights are stored as.
        """
        return cls(InpaintGenerator.from_pretrained(path, dtype=torch.float32), device, max_side, strategy)

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
        if self._crops(work.height, work.width):
            filled = self._fill_pil_regions(work, hole_of(mask))
        else:
            filled = Image.fromarray(self._fill_array(np.asarray(work), mask))
        filled = filled.convert(image.mode) if image.mode == "LA" else filled
        filled.info = dict(image.info)
        return filled

    def _fill_pil_regions(self, image: Image.Image, hole: Tensor) -> Image.Image:
        _check_sizes((1, image.height, image.width), hole)
        inside = _plane(hole)
        result = image.copy()
        for box in plan_regions(inside):
            pixels = np.asarray(image.crop((box.left, box.top, box.right, box.bottom)))
            filled = self._fill_pixels(pixels.reshape(*box.sides, -1), inside[box.area])
            result.paste(Image.fromarray(filled.reshape(pixels.shape)), (box.left, box.top))
        return result

    def _fill_array(self, image: npt.NDArray[np.uint8], mask: Mask) -> npt.NDArray[np.uint8]:
        channels = 1 if image.ndim == 2 else image.shape[-1]
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4):
            found = f"{image.dtype} {image.shape}"
            raise TypeError(f"an image array must be uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {found}")
        pixels = image.reshape(*image.shape[:2], channels)
        hole = hole_of(mask)
        _check_sizes((1, *pixels.shape[:2]), hole)
        inside = _plane(hole)
        if not self._crops(*inside.shape):
            return self._fill_pixels(pixels, inside).reshape(image.shape)
        result = pixels.copy()
        for box in plan_regions(inside):
            result[box.area] = self._fill_pixels(pixels[box.area], inside[box.area])
        return result.reshape(image.shape)

    def _fill_pixels(self, pixels: npt.NDArray[np.uint8], hole: Hole) -> npt.NDArray[np.uint8]:
        """(h, w, C), (h, w) of a picture or a region -> (h, w, C)."""
        color = np.broadcast_to(pixels[..., :3], (*pixels.shape[:2], 3))
        signal = torch.from_numpy(np.array(color)).permute(2, 0, 1)[None].float() / 255
        complete = self._complete(signal, torch.from_numpy(np.ascontiguousarray(hole))[None, None])
        filled = complete[0].permute(1, 2, 0).numpy()  # (h, w, 3) in [0, 1]
        if pixels.shape[-1] == 1:
            filled = (filled @ np.asarray(_GRAY, np.float32))[..., None]
        rounded = (filled * 255 + 0.5).astype(np.uint8)
        result = pixels.copy()
        result[..., :3][hole] = rounded[hole]
        return result

    def _fill_tensor(self, image: Tensor, hole: Tensor) -> Tensor:
        _check(image, hole)
        hole = hole.to(image.device).expand(image.shape[0], -1, -1, -1)
        if not self._crops(*image.shape[-2:]):
            return self._complete(image.detach(), hole)
        result = image.detach().clone()
        for item, inside in zip(result, hole, strict=True):
            for box in plan_regions(inside[0].cpu().numpy()):
                part = item[None, :, box.rows, box.columns]
                part.copy_(self._complete(part, inside[None, :, box.rows, box.columns]))
        return result

    def _crops(self, height: int, width: int) -> bool:
        """Tell whether pictures of this size are filled region by region."""
        return self.strategy == "crop" and self.max_side > 0 and max(height, width) > max(self.max_side, SIZE)

    @torch.no_grad()
    def _complete(self, image: Tensor, hole: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], (B, 1, H, W) bool -> a new (B, 3, H, W), right everywhere."""
        if not hole.any():
            return image.clone()
        signed, mask = image.to(self.device, torch.float32) * 2 - 1, hole.to(self.device)
        if self._crops(*image.shape[-2:]):
            largest = max(self.max_side, SIZE)
            filled = fill_region(signed, hole[0, 0].cpu().numpy(), self._predict, largest)
        elif self.strategy == "resize" and 0 < self.max_side < max(image.shape[-2:]):
            filled = self._predict_small(signed, mask)
        else:
            filled = self._predict(signed, mask)
        return torch.where(hole, ((filled + 1) / 2).to(image.device, image.dtype), image)

    def _predict(self, image: Tensor, hole: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], (B, 1, H, W) bool -> (B, 3, H, W) in [-1, 1], right in the hole."""
        height, width = image.shape[-2:]
        inputs = assemble_known_input(mirror_pad(image), mirror_pad(hole.to(image.dtype)))
        return self.generator(inputs).images[0][..., :height, :width].clamp(-1, 1)

    @torch.no_grad()
    def structure(self, image: Image.Image, mask: Mask) -> list[tuple[Box, Tensor]]:
        """Predict the gradients that a filling follows.

        Args:
            image: A PIL image.
            mask: The hole, as for a fill.

        Returns:
            For each region around a hole (the whole picture, if it is filled whole) its box and the predicted Sobel
            gradients there, (6, h, w) float32 on the CPU in the channel order of ``sobel_edges``. Where the filling
            itself takes more than one pass, they are predicted with ``max_side`` as the longer side and enlarged. An
            empty hole gives an empty list.

        Raises:
            TypeError, ValueError: As for a fill.
        """
        hole = hole_of(mask)
        _check_sizes((1, image.height, image.width), hole)
        inside = _plane(hole)
        whole = Box(0, image.height, 0, image.width)
        regions = plan_regions(inside) if self._crops(*inside.shape) else [whole] if inside.any() else []
        return [(box, self._region_gradients(image, inside[box.area], box)) for box in regions]

    def _region_gradients(self, image: Image.Image, hole: Hole, box: Box) -> Tensor:
        """(6, h, w) of a region."""
        pixels = np.array(image.crop((box.left, box.top, box.right, box.bottom)).convert("RGB"))
        signed = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device, torch.float32) / 127.5 - 1
        inside = torch.from_numpy(np.ascontiguousarray(hole))[None, None].to(self.device, torch.float32)
        largest = max(self.max_side, SIZE) if self.strategy == "crop" else self.max_side
        if self.max_side > 0 and self.strategy != "original":
            signed, inside = shrink(signed, inside, largest)
        height, width = signed.shape[-2:]
        inputs = assemble_known_input(mirror_pad(signed), mirror_pad(inside))
        gradients = self.generator(inputs).gradients[0][..., :height, :width]
        return F.interpolate(gradients, box.sides, mode="bilinear", align_corners=False)[0].float().cpu()

    def _predict_small(self, image: Tensor, hole: Tensor) -> Tensor:
        """The same with ``max_side`` as the longer side, enlarged."""
        small, small_mask = shrink(image, hole.to(image.dtype), self.max_side)
        complete = torch.where(small_mask > 0.5, self._predict(small, small_mask > 0.5), small)
        return F.interpolate(complete, image.shape[-2:], mode="bicubic", align_corners=False).clamp(-1, 1)


def hole_of(mask: Mask) -> Tensor:
    """Read a mask of any accepted kind as a bool tensor (B, 1, H, W), True in the hole.

    Raises:
        TypeError: Another kind or dtype.
        ValueError: Another shape, or uint8 values of 0 and 1 only, which white-above-127 would read as no hole.
    """
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask if mask.mode == "L" else mask.convert("L"))
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
    return torch.from_numpy(flat.copy() if flat.dtype == np.bool_ else flat > 127)[None, None]


def _check(image: Tensor, hole: Tensor) -> None:
    if not image.is_floating_point():
        raise TypeError(f"an image tensor must be floating point in [0, 1], got {image.dtype}")
    if image.dim() != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise ValueError(f"an image tensor must be (B, 3, H, W) and not empty, got {tuple(image.shape)}")
    _check_sizes((image.shape[0], *image.shape[-2:]), hole)
    known = image.detach()[~hole.to(image.device).expand_as(image)]
    low, high = float(known.min()), float(known.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"known pixels of an image tensor must be in [0, 1], got [{low:.4g}, {high:.4g}]")


def _check_sizes(size: tuple[int, ...], hole: Tensor) -> None:
    """Check a mask against (B, H, W)."""
    if hole.shape[-2:] != size[1:]:
        wanted, found = "x".join(map(str, size[1:])), "x".join(map(str, hole.shape[-2:]))
        raise ValueError(f"the mask must have the image's height and width {wanted}, got {found}")
    if hole.shape[0] not in (1, size[0]):
        raise ValueError(f"wanted one mask, or one for each of {size[0]} images, got {hole.shape[0]}")
    if hole.flatten(1).all(1).any():
        raise ValueError("the mask covers the whole picture: nothing known is left to fill it from")


def _plane(hole: Tensor) -> Hole:
    """(1, 1, H, W) -> (H, W)."""
    return hole[0, 0].cpu().numpy()
