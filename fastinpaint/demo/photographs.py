"""The demo's photographs, from scikit-image or from a folder, and fixed holes in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastinpaint.data.images import find_images, read_image, square_crop_resize
from fastinpaint.data.masks import MaskConfig, MaskSampler
from fastinpaint.extras import extra

HOLES = MaskConfig(  # half boxes, half strokes; lengths are for 256 pixels and scale with the square
    dilate_probability=0.0,
    box_probability=0.5,
    box_side=104,
    stroke_probability=0.5,
    strokes=3,
    max_vertices=8,
    brush_width=(14, 26),
)

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """The square of a photograph, (S, S, 3) uint8, with a hole, (S, S) bool."""

    name: str
    picture: Picture
    hole: npt.NDArray[np.bool_]


def load_photographs(names: tuple[str, ...], size: int) -> dict[str, Picture]:
    """Load photographs as RGB, (size, size, 3) uint8: the square from the middle, shrunk, as training crops them.

    Raises:
        ImportError: scikit-image is not installed.
    """
    with extra("demo", "the demo's choice of photographs"):
        import skimage.data
    return {name: _square(getattr(skimage.data, name)(), size) for name in names}


def read_photographs(folder: Path, size: int, most: int) -> dict[str, Picture]:
    """Read the first ``most`` pictures of a folder, each as the square from its middle, (size, size, 3) uint8.

    Raises:
        FileNotFoundError, ValueError: There is no such folder, no picture in it, or one cannot be read.
    """
    return {path.stem: np.array(square_crop_resize(read_image(path), size)) for path in find_images(folder)[:most]}


def _square(loaded: Picture | tuple[Picture, ...], size: int) -> Picture:
    picture = loaded[0] if isinstance(loaded, tuple) else loaded  # a stereo pair: its left view
    return np.array(square_crop_resize(Image.fromarray(picture).convert("RGB"), size))


def draw_cases(photographs: Mapping[str, Picture], per_photograph: int, size: int, seed: int) -> list[Case]:
    """Draw holes that depend on the arguments only."""
    holes = MaskSampler(HOLES, size, size, seed)
    chosen = [(name, picture) for name, picture in photographs.items() for _ in range(per_photograph)]
    return [Case(name, square, holes.sample(index)[0, 0].numpy() > 0.5) for index, (name, square) in enumerate(chosen)]


def training_batches(
    photographs: Mapping[str, Picture], batch_size: int, size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give image (B, 3, S, S) in [-1, 1] and mask (B, 1, S, S), 1 = hole, without end; photographs take turns.

    Two holes are laid over each other, so that more of a square has to be invented than when it is judged, and more
    is learned from it.
    """
    holes = MaskSampler(HOLES, size, size, seed)
    turns = itertools.cycle(photographs.values())
    for step in itertools.count():
        image = np.stack(list(itertools.islice(turns, batch_size)))
        masks = torch.cat([holes.sample(2 * step * batch_size + index) for index in range(2 * batch_size)])
        yield signed_tensor(image), torch.maximum(*masks.chunk(2))


def signed_tensor(squares: Picture) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 127.5 - 1
