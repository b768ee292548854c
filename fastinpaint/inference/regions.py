"""Where to fill a large picture, and in which pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastinpaint.extras import extra
from fastinpaint.inference.prepare import MULTIPLE, shrink

with extra("opencv"):
    import cv2

Hole = npt.NDArray[np.bool_]  # (H, W)
Fill = Callable[
    [Tensor, Tensor], Tensor
]  # (1, 3, H, W) in [-1, 1], (1, 1, H, W) bool -> (1, 3, H, W), right in the hole

SIZE = 256  # pixels, the side of the pictures that training sees
MARGIN = SIZE // 4  # pixels of surroundings on every side of a hole
TILE = SIZE // 2  # side of the pieces of a region that is too large for one pass
LARGEST_SHARE = 1 / 3  # of a window that is filled without a coarse filling to go by
OVERLAP = 16  # pixels by which the filling of a tile reaches into its neighbours
_CELL = 16  # pixels; holes are searched on a grid of such cells, so that labels take 1/256 of the picture


class Box(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right``, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> slice:
        """Top to bottom."""
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        """Left to right."""
        return slice(self.left, self.right)

    @property
    def area(self) -> tuple[slice, slice]:
        """What cuts the box out of (H, W, ...)."""
        return self.rows, self.columns

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def grown(self, margin: int, size: tuple[int, int], least: int = 1) -> Box:
        """Add ``margin`` on every side and at least ``least`` in all; moved and cut to fit into ``size``."""
        top, bottom = _span(self.top, self.bottom, margin, least, size[0])
        left, right = _span(self.left, self.right, margin, least, size[1])
        return Box(top, bottom, left, right)


def _span(start: int, end: int, margin: int, least: int, size: int) -> tuple[int, int]:
    start, end = max(start - margin, 0), min(end + margin, size)
    length = max(end - start, least)
    length += -length % MULTIPLE
    first = max(min((start + end - length) // 2, size - length), 0)
    return first, min(first + length, size)


def plan_regions(hole: Hole, margin: int = MARGIN, least: int = SIZE) -> list[Box]:
    """Return boxes that hold every hole with its surroundings and do not overlap, from the top down.

    Args:
        hole: (H, W), True in the hole.
        margin: Pixels on every side of a hole, as far as the picture goes.
        least: A box has at least this many pixels a side, as far as the picture goes.
    """
    size = (hole.shape[0], hole.shape[1])
    boxes = [_tight(hole, box).grown(margin, size, least) for box in _components(_cells(hole), size)]
    while True:
        cells = np.zeros([-(-side // _CELL) for side in size], bool)
        for box in boxes:
            cells[box.top // _CELL : -(-box.bottom // _CELL), box.left // _CELL : -(-box.right // _CELL)] = True
        merged = [_union([box for box in boxes if _meets(box, part)]) for part in _components(cells, size)]
        if len(merged) == len(boxes):
            return sorted(boxes)
        boxes = merged


def fill_region(image: Tensor, hole: Hole, fill: Fill, largest: int) -> Tensor:
    """Fill one region, by tiles if it is too large for one pass.

    Each tile is filled with `MARGIN` pixels of surroundings, those with the least hole around them first. While most
    of them are known, what is still missing in the surroundings is hole as well. Deep inside a large hole they are
    taken from a coarse filling instead: that of the region at half the size, enlarged. Fillings of neighbouring tiles
    overlap and are blended; known pixels are never changed.

    Args:
        image: (1, 3, H, W) in [-1, 1]; any value in the hole.
        hole: (H, W), True in the hole, with some known pixel.
        fill: Fills a picture in one pass.
        largest: Longest side in pixels of a region that is filled in one pass, at least `SIZE`.

    Returns:
        (1, 3, H, W), equal to ``image`` outside the hole.
    """
    if max(hole.shape) <= largest:
        mask = _on(hole, image)
        return torch.where(mask, fill(image, mask), image)
    return _Tiled(image, hole, fill, largest).run()


class _Tiled:
    """A region while it is filled by tiles."""

    def __init__(self, image: Tensor, hole: Hole, fill: Fill, largest: int) -> None:
        self.image, self.hole, self.fill, self.largest = image, hole, fill, largest
        self.size = (hole.shape[0], hole.shape[1])
        self.result = image.clone()
        self.done = ~hole  # known, or filled as part of a tile
        self.filled = ~hole  # known, or holding a filling that may still change

    def run(self) -> Tensor:
        """Fill all tiles."""
        todo = [tile for tile in tiles(self.size) if self.hole[tile.area].any()]
        todo.sort(key=lambda tile: float(self.hole[self._window(tile).area].mean()))
        for tile in todo:
            self._fill_tile(tile)
        return self.result

    def _window(self, tile: Box) -> Box:
        return tile.grown(MARGIN, self.size, SIZE)

    def _fill_tile(self, tile: Box) -> None:
        wide, weight = feather(tile, self.size)
        window = self._window(tile)
        inner = Box(wide.top - window.top, wide.bottom - window.top, wide.left - window.left, wide.right - window.left)
        target = self.hole[wide.area]
        unknown = ~self.done[window.area]
        unknown[inner.area] |= target
        if unknown.mean() > LARGEST_SHARE:
            self._fill_coarsely()
            unknown[:] = False
            unknown[inner.area] = target
        found = self.fill(self.result[..., window.rows, window.columns], _on(unknown, self.image))[
            ..., inner.rows, inner.columns
        ]
        old = self.result[..., wide.rows, wide.columns]
        blended = old + torch.from_numpy(weight).to(old) * (found - old)
        new = torch.where(_on(self.filled[wide.area], old), blended, found)
        self.result[..., wide.rows, wide.columns] = torch.where(_on(target, old), new, old)
        self.filled[wide.area] = True
        self.done[tile.area] = True

    def _fill_coarsely(self) -> None:
        """Put a coarse filling wherever there is none yet."""
        if self.filled.all():
            return
        small, mask = shrink(self.image, _on(self.hole, self.image).to(self.image.dtype), -(-max(self.size) // 2))
        hole = (mask > 0.5)[0, 0].cpu().numpy()
        coarse = fill_region(small, hole, self.fill, self.largest)
        enlarged = F.interpolate(coarse, self.size, mode="bicubic", align_corners=False).clamp(-1, 1)
        self.result = torch.where(_on(self.filled, self.image), self.result, enlarged)
        self.filled[:] = True


def _on(mask: Hole, like: Tensor) -> Tensor:
    """(H, W) -> (1, 1, H, W) where ``like`` is."""
    return torch.from_numpy(np.ascontiguousarray(mask)).to(like.device)[None, None]


def tiles(size: tuple[int, int]) -> Iterator[Box]:
    """Cut (H, W) into boxes of at most `TILE` pixels a side."""
    for top in range(0, size[0], TILE):
        for left in range(0, size[1], TILE):
            yield Box(top, min(top + TILE, size[0]), left, min(left + TILE, size[1]))


def feather(tile: Box, size: tuple[int, int]) -> tuple[Box, npt.NDArray[np.float32]]:
    """Return a tile with `OVERLAP` pixels more on every side, and the weight of its filling there, (h, w).

    The weight falls linearly from 1 at `OVERLAP` pixels within a side of the tile to 0 at as many beyond it; sides of
    the picture, which is ``size``, count as inside.
    """
    wide = Box(
        max(tile.top - OVERLAP, 0), min(tile.bottom + OVERLAP, size[0]),
        max(tile.left - OVERLAP, 0), min(tile.right + OVERLAP, size[1]),
    )  # fmt: skip
    rows = _ramp(wide.top, wide.bottom, size[0])
    columns = _ramp(wide.left, wide.right, size[1])
    return wide, np.minimum(rows[:, None], columns[None])


def _ramp(start: int, end: int, size: int) -> npt.NDArray[np.float32]:
    places = np.arange(start, end, dtype=np.float32)
    from_start = (places - start + 0.5) / (2 * OVERLAP) if start > 0 else np.ones_like(places)
    from_end = (end - places - 0.5) / (2 * OVERLAP) if end < size else np.ones_like(places)
    return np.minimum(np.minimum(from_start, from_end), np.float32(1))


def _cells(hole: Hole) -> Hole:
    """(H, W) -> (ceil(H / 16), ceil(W / 16)), True where a cell holds some hole."""
    rows = np.logical_or.reduceat(hole, np.arange(0, hole.shape[0], _CELL), axis=0)
    return np.asarray(np.logical_or.reduceat(rows, np.arange(0, hole.shape[1], _CELL), axis=1))


def _components(cells: Hole, size: tuple[int, int]) -> list[Box]:
    """Return the boxes, in pixels, of the 8-connected components of cells."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(cells.astype(np.uint8), connectivity=8)
    return [
        Box(
            int(top) * _CELL, min(int(top + height) * _CELL, size[0]),
            int(left) * _CELL, min(int(left + width) * _CELL, size[1]),
        )
        for left, top, width, height, _ in stats[1:]  # the first is what is not hole
    ]  # fmt: skip


def _tight(hole: Hole, box: Box) -> Box:
    inside = hole[box.area]
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    return Box(
        box.top + int(rows[0]), box.top + int(rows[-1]) + 1, box.left + int(columns[0]), box.left + int(columns[-1]) + 1
    )


def _meets(a: Box, b: Box) -> bool:
    return a.top < b.bottom and b.top < a.bottom and a.left < b.right and b.left < a.right


def _union(boxes: list[Box]) -> Box:
    columns: Any = list(zip(*boxes, strict=True))
    return Box(min(columns[0]), max(columns[1]), min(columns[2]), max(columns[3]))
