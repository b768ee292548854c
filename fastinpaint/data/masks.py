"""Masks, 1 = hole: read from files (white is hole) or drawn, and the mixture that training samples from."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fastinpaint.data.images import BLACK, PathLike, find_images, open_upright, to_rgb
from fastinpaint.data.readable import ReadableFiles
from fastinpaint.extras import extra

with extra("opencv"):
    import cv2

Mask = npt.NDArray[np.uint8]  # (H, W) of {0, 1}

_REFERENCE_SIZE = 256  # pixels; lengths in MaskConfig are meant for images of this size
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_ATTEMPTS = 16
THRESHOLD = 127  # grey values above it are hole
_FEW_PIXELS, _SMALL_SHARE = 1024, 1e-3  # fewer hole pixels than both: nearly empty
_LARGE_SHARE = 0.95  # more: nearly full


@dataclass(frozen=True)
class MaskConfig:
    """The mixture of training masks; the defaults are the original system's.

    Each mask is one of: a stroke mask (``stroke_probability``), a box (``box_probability``), a dilated base mask
    (``dilate_probability``), else a base mask as it is. A base mask is a random file of ``source``. Without a
    ``source`` it is drawn: with ``drawn_box_probability`` 1 to ``drawn_boxes`` boxes with sides of 1/8 to 1/2 of
    the image's short side, else 1 to ``strokes`` strokes.

    Lengths are pixels at 256 x 256. On other images, strokes scale with the short side, in both directions; the
    box and the count of dilations (at least 1) shrink with it below 256 and stay as they are above. Files are
    resized to the image by `resize_mask`. ``shared`` is for whoever makes batches: one mask for all of its images.

    Raises:
        ValueError: a probability outside [0, 1] or three that sum to more than 1, or an impossible range.
    """

    shared: bool = True  # one mask for all images of a batch, as in the original system; else one for each
    source: str | None = None  # folder, list or file; None draws the base masks
    invert: bool = False  # files: black is the hole
    dilate_probability: float = 0.25
    dilate_iterations: tuple[int, int] = (1, 5)  # by the 4-connected cross
    box_probability: float = 0.05
    box_side: int = 128
    stroke_probability: float = 0.10
    strokes: int = 8
    max_vertices: int = 16  # of a stroke
    max_length: int = 80  # from a vertex to the next
    brush_width: tuple[int, int] = (10, 20)
    max_angle: float = 360.0  # degrees
    drawn_box_probability: float = 0.5
    drawn_boxes: int = 4

    def __post_init__(self) -> None:
        for name in ("dilate_iterations", "brush_width"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (low, high))  # YAML gives lists
            if not 1 <= low <= high:
                raise ValueError(f"expected 1 <= low <= high for {name}, got {low}, {high}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_probability") and not 0 <= value <= 1:
                raise ValueError(f"expected {field.name} in [0, 1], got {value}")
        for name in ("box_side", "strokes", "max_vertices", "max_length", "drawn_boxes"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.dilate_probability + self.box_probability + self.stroke_probability > 1 + 1e-9:
            raise ValueError("expected probabilities of dilation, box and strokes that sum to at most 1")


class MaskSampler:
    """Masks by step number: (1, 1, H, W) float32 of {0, 1}, the same whenever and wherever it is asked for.

    A mask is never empty and never full: such a draw is made again, and after 16 of them the mask is a centred
    box of half the height and half the width, which is warned about once. Mask files that are unreadable, empty or
    full are warned about and replaced by the next.

    Args:
        config: the mixture.
        height: pixels.
        width: pixels.
        seed: at least 0.

    Raises:
        FileNotFoundError, ValueError: no mask at ``config.source``, fewer than 2 pixels, or a negative seed.
    """

    def __init__(self, config: MaskConfig, height: int, width: int, seed: int = 0) -> None:
        if height < 1 or width < 1 or height * width < 2:
            raise ValueError(f"expected at least 2 pixels to hold a hole and a rest, got {height} x {width}")
        if seed < 0:
            raise ValueError(f"expected a seed of at least 0, got {seed}")
        self.config, self.height, self.width, self.seed = config, height, width, seed
        self._shrink = min(1.0, _scale(height, width))
        self._warned = False
        self._files: ReadableFiles[Mask] | None = None
        if config.source is not None:
            self._files = ReadableFiles(find_images(config.source), partial(read_mask, invert=config.invert))

    @property
    def unreadable(self) -> list[Path]:
        """The mask files that were skipped so far."""
        return self._files.unreadable if self._files else []

    def sample(self, step: int) -> torch.Tensor:
        """Return the mask of a step, at least 0."""
        if step < 0:
            raise ValueError(f"expected a step of at least 0, got {step}")
        rng = np.random.default_rng((self.seed, step))
        for _ in range(_ATTEMPTS):
            mask = self._draw(rng)
            holes = int(mask.sum())
            if 0 < holes < mask.size:
                break
        else:
            self._warn("full" if holes else "empty", step)
            mask = _centre_box(self.height, self.width)
        return torch.from_numpy(mask).to(torch.float32)[None, None]

    def _warn(self, found: str, step: int) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{_ATTEMPTS} masks of {self.height} x {self.width} drawn for update {step} are all empty or full, the "
                f"last one {found}: a centred box is taken, and wherever this happens; see the options of masks",
                RuntimeWarning,
                stacklevel=3,
            )

    def _draw(self, rng: np.random.Generator) -> Mask:
        config = self.config
        choice = rng.random()
        if choice < config.stroke_probability:
            return stroke_mask(self.height, self.width, rng, config)
        choice -= config.stroke_probability
        if choice < config.box_probability:
            side = max(1, round(config.box_side * self._shrink))
            return box_mask(self.height, self.width, side, side, rng)
        choice -= config.box_probability
        mask = self._base(rng)
        if choice < config.dilate_probability:
            iterations = int(rng.integers(*config.dilate_iterations, endpoint=True))
            mask = dilate(mask, max(1, round(iterations * self._shrink)))
        return mask

    def _base(self, rng: np.random.Generator) -> Mask:
        if self._files is not None:
            mask = self._files.read(int(rng.integers(len(self._files))))
            return resize_mask(mask, self.height, self.width)
        if rng.random() >= self.config.drawn_box_probability:
            count = int(rng.integers(1, self.config.strokes, endpoint=True))
            return stroke_mask(self.height, self.width, rng, self.config, strokes=count)
        mask = np.zeros((self.height, self.width), np.uint8)
        short = min(self.height, self.width)
        for _ in range(int(rng.integers(1, self.config.drawn_boxes, endpoint=True))):
            sides = rng.integers(max(1, short // 8), max(1, short // 2), size=2, endpoint=True)
            mask |= box_mask(self.height, self.width, int(sides[0]), int(sides[1]), rng)
        return mask


def box_mask(height: int, width: int, box_height: int, box_width: int, rng: np.random.Generator | None = None) -> Mask:
    """Return a (``height``, ``width``) mask with one box, at a random place, or centred without ``rng``.

    A box larger than the image is cut to it. Raises ValueError for sizes below 1.
    """
    if min(height, width, box_height, box_width) < 1:
        raise ValueError(f"expected sizes of at least 1, got {box_height} x {box_width} in {height} x {width}")
    box_height, box_width = min(box_height, height), min(box_width, width)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    if rng is not None:
        top = int(rng.integers(0, height - box_height, endpoint=True))
        left = int(rng.integers(0, width - box_width, endpoint=True))
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + box_height, left : left + box_width] = 1
    return mask


def stroke_mask(
    height: int,
    width: int,
    rng: np.random.Generator,
    config: MaskConfig | None = None,
    *,
    strokes: int | None = None,
) -> Mask:
    """Return a free-form mask: brush strokes from vertex to vertex with round joints.

    Each stroke starts anywhere and makes 1 to ``max_vertices`` steps of up to ``max_length``, by an angle of up
    to ``max_angle`` whose sense alternates, within the image. Lengths scale with min(height, width) / 256.

    Args:
        height: pixels.
        width: pixels.
        rng: the source of randomness.
        config: the sizes; the original system's by default.
        strokes: how many, instead of ``config.strokes``.
    """
    if min(height, width) < 1:
        raise ValueError(f"expected a size of at least 1 x 1, got {height} x {width}")
    config = config or MaskConfig()
    mask = np.zeros((height, width), np.uint8)
    for _ in range(config.strokes if strokes is None else strokes):
        _draw_stroke(mask, rng, config)
    return mask


def _draw_stroke(mask: Mask, rng: np.random.Generator, config: MaskConfig) -> None:
    height, width = mask.shape
    scale = _scale(height, width)
    brush = rng.uniform(*config.brush_width) * scale
    x, y = int(rng.integers(width)), int(rng.integers(height))
    vertices = [(x, y)]
    for step in range(int(rng.integers(1, config.max_vertices, endpoint=True))):
        angle = math.radians(rng.uniform(0, config.max_angle)) * (-1) ** step
        length = rng.uniform(0, config.max_length) * scale
        x = min(max(round(x + length * math.sin(angle)), 0), width - 1)
        y = min(max(round(y + length * math.cos(angle)), 0), height - 1)
        vertices.append((x, y))
    # OpenCV draws thick lines up to 2 pixels too wide, which is much on small images: widen a thin one instead.
    background = np.ones_like(mask)
    cv2.polylines(background, [np.array(vertices, np.int32)], isClosed=False, color=0)
    distance = cv2.distanceTransform(background, cv2.DIST_L2, cv2.DIST_MASK_5)
    mask[distance < brush / 2] = 1


def dilate(mask: Mask, iterations: int) -> Mask:
    """Grow the holes of a (H, W) uint8 mask by the 4-connected cross, ``iterations`` times (0 copies)."""
    if iterations < 0:
        raise ValueError(f"expected at least 0 iterations, got {iterations}")
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise TypeError(f"expected a (H, W) mask of uint8, got {mask.shape} of {mask.dtype}")
    return mask.copy() if iterations == 0 else np.asarray(cv2.dilate(mask, _CROSS, iterations=iterations), np.uint8)


def read_mask(path: PathLike | bytes, invert: bool = False) -> Mask:
    """Read a mask file of any mode, or the content of one, as a (H, W) uint8 mask: 1 where its grey value is above 127.

    Transparent pixels count as black, so a white stroke on a transparent layer is a hole. ``invert`` turns the result
    around (black is the hole). A mask that is nearly empty or nearly full is warned about.

    Raises:
        ValueError: the file is missing or not an image, or the mask holds no hole or nothing else; the message names
            it, and the highest value of an empty one.
    """
    with open_upright(path) as image:
        grey = grey_of(image)
    return mask_of_grey(grey, invert, "that was sent" if isinstance(path, bytes) else path)


def mask_of_grey(grey: Mask, invert: bool, name: PathLike) -> Mask:
    """Return what `read_mask` makes of grey values, (H, W) uint8; messages call the mask ``name``."""
    mask = ((grey > THRESHOLD) != invert).view(np.uint8)
    check_mask(mask, name, f"its values are {int(grey.min())} to {int(grey.max())}, white is above {THRESHOLD}")
    return mask


def grey_of(image: Image.Image) -> Mask:
    """Return the grey values, (H, W) uint8, of a mask picture; transparency counts as black."""
    plain = image.mode in ("L", "1") and not image.has_transparency_data
    return np.asarray((image if plain else to_rgb(image, background=BLACK)).convert("L"))


def check_mask(mask: Mask, name: PathLike, values: str) -> None:
    """Warn of a mask that is nearly empty or nearly full.

    Args:
        mask: (H, W).
        name: what messages call it.
        values: what messages say of the values it was made of.

    Raises:
        ValueError: the mask is empty or full.
    """
    holes, size = int(np.count_nonzero(mask)), mask.size
    if not holes:
        raise ValueError(f"the mask {name} marks no hole: {values}")
    if holes == size:
        raise ValueError(f"the mask {name} covers the whole picture, nothing known is left: {values}")
    if holes < _FEW_PIXELS and holes < _SMALL_SHARE * size:
        warnings.warn(f"the mask {name} is nearly empty: {holes} of {size} pixels", RuntimeWarning, stacklevel=3)
    if holes > _LARGE_SHARE * size:
        warnings.warn(f"the mask {name} is nearly full: {holes / size:.1%} is hole", RuntimeWarning, stacklevel=3)


def resize_mask(mask: Mask, height: int, width: int) -> Mask:
    """Resize a (H, W) mask without losing thin holes.

    A pixel is hole where it covers some hole. Where that would make a fine mask (dust, a screen) much fuller than it
    is, the nearest pixel decides instead.
    """
    if mask.shape == (height, width):
        return mask
    nearest = _nearest(mask, height, width)
    shrunk = min(height, mask.shape[0]), min(width, mask.shape[1])
    covered = cv2.resize(mask.astype(np.float32), shrunk[::-1], interpolation=cv2.INTER_AREA) > 1e-6
    fine = covered.mean() > max(0.5, 1.25 * float(mask.mean()))
    return nearest if fine else _nearest(covered.astype(np.uint8), height, width)


def _nearest(mask: Mask, height: int, width: int) -> Mask:
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def _scale(height: int, width: int) -> float:
    return min(height, width) / _REFERENCE_SIZE


def _centre_box(height: int, width: int) -> Mask:
    return box_mask(height, width, max(1, height // 2), max(1, width // 2))
