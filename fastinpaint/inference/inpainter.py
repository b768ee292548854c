"""Fill the hole of a picture, whatever kind of object it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastinpaint.data.masks import THRESHOLD, grey_of
from fastinpaint.inference.canvas import ArrayCanvas, Canvas, PillowCanvas, TensorCanvas, editable, levels_of
from fastinpaint.inference.graphs import GraphPerSize
from fastinpaint.inference.precision import Precision, computing_in, layout_on, precision_of, usable_device
from fastinpaint.inference.prepare import mirror_pad, shrink
from fastinpaint.inference.regions import SIZE, Box, Hole, fill_region, plan_regions
from fastinpaint.models.generator import GeneratorOutput, InpaintGenerator
from fastinpaint.models.inputs import assemble_known_input

Picture = TypeVar("Picture", Image.Image, npt.NDArray[Any], Tensor)
Mask = Image.Image | npt.NDArray[Any] | Tensor
Strategy = Literal["crop", "resize", "original"]


class _Job(NamedTuple):
    """A region of a picture and its hole, (h, w)."""

    canvas: Canvas
    box: Box
    hole: Hole


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
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the processor computes it faster.
        cuda_graphs: On a GPU, replay a CUDA graph for each size of region and batch that comes again, up to 2^20
            pixels. Backend and modules stay those of the recorded call; the memory of up to four such calls is kept.

    Attributes:
        precision: ``torch.float32`` or ``torch.bfloat16``.

    Raises:
        ValueError: ``max_side`` is negative, another strategy or precision, or a device that cannot be used.
    """

    def __init__(
        self,
        generator: InpaintGenerator,
        device: str | torch.device | None = None,
        max_side: int = 512,
        strategy: Strategy = "crop",
        precision: Precision = "float32",
        cuda_graphs: bool = True,
    ) -> None:
        if max_side < 0:
            raise ValueError(f"max_side must be at least 0 pixels, got {max_side}")
        if strategy not in get_args(Strategy):
            raise ValueError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}")
        self.device = usable_device(device)
        self.generator = generator.to(self.device).eval()
        self.generator.to(memory_format=layout_on(self.device))  # type: ignore[call-overload]
        self.max_side = max_side
        self.strategy = strategy
        self.precision = precision_of(precision, self.device)
        graphs = cuda_graphs and self.device.type == "cuda"
        self._graphs = GraphPerSize(self._predict_plainly, self.device, self._weights) if graphs else None

    def _weights(self) -> Iterable[Tensor]:
        return [*self.generator.parameters(), *self.generator.buffers()]

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device | None = None,
        max_side: int = 512,
        strategy: Strategy = "crop",
        precision: Precision = "float32",
        cuda_graphs: bool = True,
    ) -> Inpainter:
        """Load a folder that ``save_pretrained`` or ``fastinpaint convert`` wrote, or a model that ships (``"small"``).

        ``"user/repository"`` is a model on the Hugging Face Hub (extra ``hub``). The model computes in ``precision``,
        whatever its weights are stored as.
        """
        generator = InpaintGenerator.from_pretrained(path, dtype=torch.float32)
        return cls(generator, device, max_side, strategy, precision, cuda_graphs)

    def __call__(self, image: Picture, mask: Mask) -> Picture:
        """Fill the hole.

        Args:
            image: One of
                a PIL image: it comes back in its mode with alpha as it was, CMYK and 16-bit grey included, but
                palettes become RGB, bilevel becomes grey and a transparent colour becomes an alpha channel;
                an array of uint8 or uint16 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the fourth channel being alpha;
                a floating-point tensor (B, 3, H, W) in [0, 1], on any device.
            mask: The hole, of the image's height and width: a PIL image (white, above 127, is hole; what is
                transparent is not), an array (H, W) or (H, W, 1) of bool or of uint8 above 127, or a tensor (H, W),
                (1, 1, H, W) or (B, 1, H, W) of bool or of values above 0.5. An empty hole returns the picture as it is.

        Returns:
            A new object of the kind, size and precision of ``image``, equal to it outside the hole.

        Raises:
            TypeError: An image or mask of another kind or dtype.
            ValueError: Sizes that differ, values out of range, a mask that leaves nothing known, or weights that
                give values that are not finite.
        """
        return self.fill_many([image], [mask], batch_size=image.shape[0] or 1 if isinstance(image, Tensor) else 8)[0]

    def fill_many(
        self, images: Sequence[Any], masks: Sequence[Mask], batch_size: int = 8, *, in_place: bool = False
    ) -> list[Any]:
        """Fill several pictures of any kinds and sizes; regions of one size share a pass of the generator.

        Args:
            images: As for one call.
            masks: One for each.
            batch_size: Regions of a pass, at most.
            in_place: Fill arrays, tensors and PIL images of modes that stay as they are themselves, not copies.

        Returns:
            The pictures, in order; see ``__call__``, also for errors.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        results, jobs = [], []
        for image, mask in zip(images, masks, strict=True):
            result, canvases = _canvases(image, hole_of(mask), in_place)
            results.append(result)
            jobs += [_Job(canvas, box, hole[box.area]) for canvas, hole in canvases for box in self._regions(hole)]
        whole = [job for job in jobs if not self._crops(*job.hole.shape)]
        whole.sort(key=lambda job: job.hole.shape)
        for _, group in groupby(whole, lambda job: job.hole.shape):
            same = list(group)
            for start in range(0, len(same), batch_size):
                self._fill(same[start : start + batch_size])
        for job in jobs:
            if self._crops(*job.hole.shape):
                self._fill([job])
        return results

    def _regions(self, hole: Hole) -> list[Box]:
        if not hole.any():
            return []
        return plan_regions(hole) if self._crops(*hole.shape) else [Box(0, hole.shape[0], 0, hole.shape[1])]

    def _crops(self, height: int, width: int) -> bool:
        """Tell whether pictures of this size are filled region by region."""
        return self.strategy == "crop" and self.max_side > 0 and max(height, width) > max(self.max_side, SIZE)

    @torch.no_grad()
    def _fill(self, jobs: list[_Job]) -> None:
        """Fill regions of one size."""
        image = torch.stack([job.canvas.read(job.box).to(self.device) for job in jobs]) * 2 - 1
        mask = torch.from_numpy(np.stack([job.hole for job in jobs]))[:, None].to(self.device)
        if self._crops(*jobs[0].hole.shape):
            filled = fill_region(image, jobs[0].hole, self._predict, max(self.max_side, SIZE))
        elif self.strategy == "resize" and 0 < self.max_side < max(image.shape[-2:]):
            filled = self._predict_small(image, mask)
        else:
            filled = self._predict(image, mask)
        unit = torch.where(mask, (filled + 1) / 2, 0.0).cpu()
        if not unit.isfinite().all():
            raise ValueError("the model fills holes with values that are not finite: its weights cannot be used")
        for job, values in zip(jobs, unit, strict=True):
            job.canvas.write(job.box, job.hole, values)

    def _predict(self, image: Tensor, hole: Tensor) -> Tensor:
        """As ``_predict_plainly``, by a CUDA graph where there is one for the size."""
        return (self._graphs or self._predict_plainly)(image, hole)

    def _predict_plainly(self, image: Tensor, hole: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], (B, 1, H, W) bool -> (B, 3, H, W) in [-1, 1], right in the hole."""
        height, width = image.shape[-2:]
        inputs = assemble_known_input(mirror_pad(image), mirror_pad(hole.to(image.dtype)))
        return self._generate(inputs).images[0][..., :height, :width].float().clamp(-1, 1)

    def _generate(self, inputs: Tensor) -> GeneratorOutput:
        """(B, 11, H, W) -> what the generator predicts, in ``precision``."""
        with computing_in(self.precision, self.device):
            output: GeneratorOutput = self.generator(inputs)
        return output

    @torch.no_grad()
    def structure(self, image: Image.Image | npt.NDArray[Any], mask: Mask) -> list[tuple[Box, Tensor]]:
        """Predict the gradients that a filling follows.

        Args:
            image: A PIL image or an array, as for a fill.
            mask: The hole, as for a fill.

        Returns:
            For each region around a hole (the whole picture, if it is filled whole) its box and the predicted Sobel
            gradients there, (6, h, w) float32 on the CPU in the channel order of ``sobel_edges``. Where the filling
            itself takes more than one pass, they are predicted with ``max_side`` as the longer side and enlarged. An
            empty hole gives an empty list.

        Raises:
            TypeError, ValueError: As for a fill.
        """
        _, canvases = _canvases(image, hole_of(mask), in_place=False)
        return [
            (box, self._region_gradients(canvas.read(box), hole[box.area]))
            for canvas, hole in canvases
            for box in self._regions(hole)
        ]

    def _region_gradients(self, image: Tensor, hole: Hole) -> Tensor:
        """(3, h, w) in [0, 1] -> (6, h, w)."""
        signed = image[None].to(self.device) * 2 - 1
        inside = torch.from_numpy(np.ascontiguousarray(hole))[None, None].to(self.device, torch.float32)
        largest = max(self.max_side, SIZE) if self.strategy == "crop" else self.max_side
        if self.max_side > 0 and self.strategy != "original":
            signed, inside = shrink(signed, inside, largest)
        height, width = signed.shape[-2:]
        inputs = assemble_known_input(mirror_pad(signed), mirror_pad(inside))
        gradients = self._generate(inputs).gradients[0][..., :height, :width].float()
        return F.interpolate(gradients, hole.shape, mode="bilinear", align_corners=False)[0].cpu()

    def _predict_small(self, image: Tensor, hole: Tensor) -> Tensor:
        """The same with ``max_side`` as the longer side, enlarged."""
        small, small_mask = shrink(image, hole.to(image.dtype), self.max_side)
        complete = torch.where(small_mask > 0.5, self._predict(small, small_mask > 0.5), small)
        return F.interpolate(complete, image.shape[-2:], mode="bicubic", align_corners=False).clamp(-1, 1)


def hole_of(mask: Mask) -> Tensor:
    """Read a mask of any accepted kind as a bool tensor (B, 1, H, W), True in the hole.

    Raises:
        TypeError: Another kind or dtype.
        ValueError: Another shape, NaN, or no value that is hole although some are not 0: 0 and 1 in uint8, for example.
    """
    if isinstance(mask, Image.Image):
        return torch.from_numpy(_above_threshold(grey_of(mask)))[None, None]
    if isinstance(mask, np.ndarray):
        return _hole_of_array(mask)
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a PIL image, an array or a tensor, got {type(mask).__name__}")
    shaped = mask[None, None] if mask.dim() == 2 else mask
    if shaped.dim() != 4 or shaped.shape[1] != 1:
        raise ValueError(f"a mask tensor must be (H, W) or (B, 1, H, W), got {tuple(mask.shape)}")
    if shaped.dtype != torch.bool and not shaped.is_floating_point():
        raise TypeError(f"a mask tensor must be bool or floating point, got {mask.dtype}")
    if shaped.dtype == torch.bool:
        return shaped
    highest = float(shaped.detach().amax()) if shaped.numel() else 0.0  # NaN if there is one
    if not (highest > 0.5 or highest == 0):
        raise ValueError(f"a mask tensor is hole above 0.5, but the highest value of this one is {highest:.4g}")
    return shaped > 0.5


def _hole_of_array(mask: npt.NDArray[Any]) -> Tensor:
    if mask.dtype not in (np.bool_, np.uint8):
        raise TypeError(f"a mask array must be bool or uint8 (above 127 is hole), got {mask.dtype}")
    flat = mask[..., 0] if mask.ndim == 3 and mask.shape[-1] == 1 else mask
    if flat.ndim != 2:
        raise ValueError(f"a mask array must be (H, W) or (H, W, 1), got {mask.shape}")
    hole = flat if flat.dtype == np.bool_ else _above_threshold(flat)
    return torch.from_numpy(hole if hole.flags.writeable and hole.flags.c_contiguous else hole.copy())[None, None]


def _above_threshold(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    highest = int(grey.max(initial=0))
    if 0 < highest <= THRESHOLD:
        hint = ": give bool, or 0 and 255" if highest == 1 else ""
        raise ValueError(f"a mask is hole above {THRESHOLD}, but the highest value of this one is {highest}{hint}")
    return np.asarray(grey > THRESHOLD)


def _canvases(image: Any, hole: Tensor, in_place: bool) -> tuple[Any, list[tuple[Canvas, Hole]]]:
    """Return what will hold the filled picture, and each of its pictures with its hole."""
    if isinstance(image, Image.Image):
        _check_sizes((1, image.height, image.width), hole)
        inside = hole[0, 0].cpu().numpy()
        work = editable(image)
        work = image.copy() if work is image and not in_place else work
        work.info = {
            key: value for key, value in image.info.items() if work.mode == image.mode or key != "transparency"
        }
        deep = work.mode in ("I", "I;16", "F")
        levels = levels_of(np.asarray(work), inside) if deep else (0.0, 255.0)
        return work, [(PillowCanvas(work, levels), inside)]
    if isinstance(image, np.ndarray):
        channels = 1 if image.ndim == 2 else image.shape[-1]
        if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or channels not in (1, 3, 4):
            found = f"{image.dtype} {image.shape}"
            raise TypeError(
                f"an image array must be uint8 or uint16, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {found}"
            )
        _check_sizes((1, *image.shape[:2]), hole)
        inside = hole[0, 0].cpu().numpy()
        pixels = image if in_place else image.copy()
        return pixels, [(ArrayCanvas(pixels, levels_of(pixels, inside)), inside)]
    if isinstance(image, Tensor):
        _check(image, hole)
        result = image.detach() if in_place else image.detach().clone()
        holes = hole.expand(image.shape[0], -1, -1, -1)[:, 0].cpu().numpy()
        return result, [(TensorCanvas(item), inside) for item, inside in zip(result, holes, strict=True)]
    raise TypeError(f"image must be a PIL image, an array or a tensor, got {type(image).__name__}")


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
