"""Contact sheets: labelled grids of holes, results and predicted structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastinpaint.data.images import to_uint8_image
from fastinpaint.files import atomic_write

Cell = npt.NDArray[np.uint8]

_GAP = 6  # pixels
_LABEL = 24  # pixels
_STEEPEST = 4.0  # gradient of a step by half the range [-1, 1], with Sobel's unnormalised kernel
_EDGE = 1.0  # least luminance gradient of an edge, in the same unit


def picture_cell(image: Tensor) -> Cell:
    """(3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    return to_uint8_image(image)


def hole_cell(image: Tensor, mask: Tensor) -> Cell:
    """(3, H, W) in [-1, 1], (1, H, W) with 1 = hole -> (H, W, 3) uint8 with a white hole."""
    return picture_cell(torch.where(mask > 0.5, 1.0, image))


def gradient_cell(gradients: Tensor) -> Cell:
    """(6, H, W), channels as ``sobel_edges`` orders them -> (H, W, 3) uint8: their length for red, green, blue."""
    length = gradients.detach().float().unflatten(0, (3, 2)).norm(dim=1)  # (3, H, W)
    return picture_cell(length / _STEEPEST * 2 - 1)


def edge_cell(gradients: Tensor) -> Cell:
    """(6, H, W) -> (H, W, 3) uint8: black where the luminance gradient is steep and the steepest across the edge."""
    weights = torch.tensor([0.2125, 0.7154, 0.0721], device=gradients.device)
    dy, dx = (gradients.detach().float().unflatten(0, (3, 2)) * weights[:, None, None, None]).sum(0)  # (H, W) each
    length = torch.hypot(dy, dx)
    padded = torch.nn.functional.pad(length, (1, 1, 1, 1))
    height, width = length.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    unit = length.clamp_min(1e-6)
    step_y, step_x = (dy / unit).round().long().cpu(), (dx / unit).round().long().cpu()
    padded = padded.cpu()
    ahead = padded[rows + 1 + step_y, columns + 1 + step_x]
    behind = padded[rows + 1 - step_y, columns + 1 - step_x]
    here = length.cpu()
    edge = (here >= ahead) & (here > behind) & (here > _EDGE)
    return np.repeat(np.where(edge.numpy(), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def draw_sheet(rows: Sequence[Mapping[str, Cell]], path: Path, *, cell: int = 192, notes: Sequence[str] = ()) -> None:
    """Draw a grid as PNG.

    Args:
        rows: For each row the cells by column name, all rows with the same columns.
        path: The file to write.
        cell: Side of the box in pixels that each cell is scaled into.
        notes: A line under each row; none if empty.

    Raises:
        ValueError: No rows.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    columns = list(rows[0])
    note = _LABEL if notes else 0
    pitch = cell + note + _GAP
    size = (len(columns) * (cell + _GAP) + _GAP, _LABEL + len(rows) * pitch + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for x, column in enumerate(columns):
        draw.text((_GAP + x * (cell + _GAP), 4), column, fill="black", font=font)
    for y, row in enumerate(rows):
        top = _LABEL + y * pitch + _GAP
        for x, column in enumerate(columns):
            sheet.paste(_fit(row[column], cell), (_GAP + x * (cell + _GAP), top))
        if notes:
            draw.text((_GAP, top + cell + 2), notes[y], fill="black", font=font)
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")


def _fit(pixels: Cell, box: int) -> Image.Image:
    height, width = pixels.shape[:2]
    ratio = box / max(height, width)
    size = (max(round(width * ratio), 1), max(round(height * ratio), 1))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC if ratio < 1 else Image.Resampling.NEAREST)
