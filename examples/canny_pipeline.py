"""Canny in a data pipeline: a Dataset of pictures, and edges of several scales for each batch of its DataLoader.

python examples/canny_pipeline.py FOLDER

Edges of a whole batch in one call are faster than a call for each picture in `__getitem__`, and on a GPU the batch may
be moved there first. For precomputed edges, call `fi.canny` in `__getitem__` instead.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fastinpaint as fi

KINDS = {".jpg", ".jpeg", ".png", ".webp"}


class Pictures(Dataset[Tensor]):
    """The pictures of a folder as (3, size, size) uint8."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS)
        self.size = size

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Read one picture."""
        with Image.open(self.paths[index]) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB").resize((self.size, self.size)))).permute(2, 0, 1)


def batches(
    folder: Path, size: int = 256, batch_size: int = 16, workers: int = 2, device: str = "cpu"
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield pictures (B, 3, size, size) float32 in [0, 1] and edges (B, 1, size / s, size / s) for s = 1, 2, 4."""
    for pictures in DataLoader(Pictures(folder, size), batch_size, num_workers=workers):
        images = pictures.to(device).float() / 255
        yield images, list(fi.canny_pyramid(images, scales=(1, 2, 4), sigma=1.5))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for number, (images, edges) in enumerate(batches(parser.parse_args().folder)):
        shares = ", ".join(f"{level.float().mean():.1%}" for level in edges)
        print(f"batch {number}: {len(images)} pictures; edge pixels at full, half and quarter size: {shares}")
