"""The demo's photographs, which ship with scikit-image, and fixed holes in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastinpaint.data.masks import MaskConfig, MaskSampler

SEEN = ("astronaut", "coffee", "chelsea", "rocket")
UNSEEN = ("stereo_motorcycle", "camera", "coins", "retina")

HOLES = MaskConfig(  # half boxes, half strokes; lengths are for 256 pixels and scale with the square
    dilate_probability=0.0, box_probability=0.5, box_side=112, stroke_probability=0.5, strokes=4, brush_width=(16, 28)
)

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A square of a photograph, (S, S, 3) uint8, with a hole, (S, S) bool."""

    name: str
    picture: Picture
    hole: npt.NDArray[np.bool_]


def load_photographs(names: tuple[str, ...], short_side: int) -> dict[str, Picture]:
    """Load photographs as RGB, (H, W, 3) uint8, shrunk so that the shorter side is ``short_side`` pixels.

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError(
            "the demo takes its photographs from scikit-image: pip install 'fastinpaint[demo]'"
        ) from error
    return {name: _shrink(getattr(skimage.data, name)(), short_side) for name in names}


def _shrink(loaded: Picture | tuple[Picture, ...], short_side: int) -> Picture:
    picture = loaded[0] if isinstance(loaded, tuple) else loaded  # a stereo pair: its left view
    color = np.repeat(picture[..., None], 3, axis=-1) if picture.ndim == 2 else picture[..., :3]
    height, width = color.shape[:2]
    ratio = short_side / min(height, width)
    size = (round(width * ratio), round(height * ratio))
    shrunk = cv2.resize(np.ascontiguousarray(color), size, interpolation=cv2.INTER_AREA)
    return shrunk.astype(np.uint8, copy=False)


def draw_cases(photographs: Mapping[str, Picture], per_photograph: int, size: int, seed: int) -> list[Case]:
    """Draw squares and holes that depend on the arguments only."""
    rng = np.random.default_rng(seed)
    holes = MaskSampler(HOLES, size, size, seed)
    chosen = [
        (name, places[int(rng.integers(len(places)))])
        for name, picture in photographs.items()
        for places in [squares(picture, size)]
        for _ in range(per_photograph)
    ]
    return [Case(name, square, holes.sample(index)[0, 0].numpy() > 0.5) for index, (name, square) in enumerate(chosen)]


def training_batches(
    photographs: Mapping[str, Picture], batch_size: int, size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give image (B, 3, S, S) in [-1, 1] and mask (B, 1, S, S), 1 = hole, without end.

    Each photograph is as likely as another, whatever its length. Two holes are laid over each other, so that more of
    a square has to be invented than when it is judged, and more is learned from it.
    """
    rng = np.random.default_rng(seed)
    holes = MaskSampler(HOLES, size, size, seed)
    places = [squares(picture, size) for picture in photographs.values()]
    for step in itertools.count():
        chosen = [places[index] for index in rng.integers(len(places), size=batch_size)]
        image = np.stack([squares_of_one[int(rng.integers(len(squares_of_one)))] for squares_of_one in chosen])
        masks = torch.cat([holes.sample(2 * step * batch_size + index) for index in range(2 * batch_size)])
        yield signed_tensor(image), torch.maximum(*masks.chunk(2))


def signed_tensor(squares: Picture) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 127.5 - 1


def squares(picture: Picture, size: int) -> list[Picture]:
    """Cut out the squares of ``size`` pixels at a distance of a quarter of their side."""
    height, width = picture.shape[:2]
    step = max(size // 4, 1)
    return [
        picture[top : top + size, left : left + size]
        for top in range(0, height - size + 1, step)
        for left in range(0, width - size + 1, step)
    ]
