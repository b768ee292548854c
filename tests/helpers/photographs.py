"""Crops of the photographs that ship with scikit-image."""

import numpy as np

from fastinpaint.demo.photographs import load_photographs

NAMES = ("astronaut", "coffee", "chelsea", "rocket", "stereo_motorcycle", "camera", "coins", "retina")


def crops(count: int, size: int) -> list[np.ndarray]:
    """``count`` different (size, size, 3) uint8 crops."""
    pictures = list(load_photographs(NAMES, 256).values())
    rng = np.random.default_rng(0)
    chosen = []
    for index in range(count):
        top, left = rng.integers(0, 256 - size, 2, endpoint=True)
        chosen.append(pictures[index % len(pictures)][top : top + size, left : left + size].copy())
    return chosen
