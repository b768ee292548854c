"""Judge a model on photographs that it never saw, beside OpenCV's methods: a table and a contact sheet.

    python scripts/judge_small.py MODEL PHOTOGRAPHS SHEET.png [--size 256] [--device cpu] [--count 50]

Each photograph gets a box of 1/4 to 3/8 of its side and a mask of strokes that covers 10 to 30 %, both fixed by the
seed. PSNR is over the pixels of the hole, SSIM the mean over the hole of its map (Gaussian of sigma 1.5, [0, 255]).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from fastinpaint.data.images import find_images, read_image, square_crop_resize
from fastinpaint.data.masks import MaskConfig, box_mask, stroke_mask
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.training.sheets import draw_sheet

RADIUS = 5  # pixels, of OpenCV's methods
STROKES = MaskConfig(brush_width=(12, 24), max_vertices=8)


def holes(size: int, seed: int) -> dict[str, np.ndarray]:
    """Return a box and strokes, (size, size) bool each."""
    rng = np.random.default_rng((7, seed))
    height, width = (int(rng.integers(size // 4, 3 * size // 8, endpoint=True)) for _ in range(2))
    strokes = np.zeros((size, size), np.uint8)
    while not 0.1 <= strokes.mean() <= 0.3:
        strokes = stroke_mask(size, size, rng, STROKES, strokes=int(rng.integers(2, 6, endpoint=True)))
    return {"box": box_mask(size, size, height, width, rng) > 0, "strokes": strokes > 0}


def psnr(filled: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """In dB, over the hole."""
    error = filled[hole].astype(np.float64) - truth[hole]
    return float(10 * np.log10(255**2 / max(float(np.mean(error**2)), 1e-10)))


def ssim(filled: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """Mean of the SSIM map of the three channels over the hole."""

    def blur(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.GaussianBlur(values, (11, 11), 1.5))

    a, b = filled.astype(np.float64), truth.astype(np.float64)
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    table = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    table /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float(table[hole].mean())


def opencv(method: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a filler by one of OpenCV's methods."""
    return lambda picture, hole: np.asarray(cv2.inpaint(picture, hole.astype(np.uint8), RADIUS, method))


def main() -> None:
    """Print the table, write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--rows", type=int, default=24, help="of the sheet")
    options = parser.parse_args()
    fillers = {
        "model": Inpainter.from_pretrained(options.model, options.device),
        "Telea": opencv(cv2.INPAINT_TELEA),
        "Navier-Stokes": opencv(cv2.INPAINT_NS),
    }
    scores: dict[tuple[str, str], list[tuple[float, float]]] = {}
    rows, notes = [], []
    rng = np.random.default_rng(0)
    for index, path in enumerate(find_images(options.photographs)[: options.count]):
        truth = np.array(square_crop_resize(read_image(path), options.size))
        for kind, hole in holes(options.size, index).items():
            spoiled = truth.copy()
            spoiled[hole] = rng.integers(0, 256, (int(hole.sum()), 3), dtype=np.uint8)  # nobody can peek
            shown = truth.copy()
            shown[hole] = 255
            row, note = {"hole": shown}, []
            for name, fill in fillers.items():
                row[name] = fill(spoiled, hole)
                score = (psnr(row[name], truth, hole), ssim(row[name], truth, hole))
                scores.setdefault((kind, name), []).append(score)
                note.append(f"{name} {score[0]:.1f} dB {score[1]:.2f}")
            rows.append({**row, "truth": truth})
            notes.append(f"{path.stem}: {', '.join(note)}")
    print(f"{'hole':<8} {'method':<14} {'PSNR dB':>8} {'SSIM':>6} {'holes':>6}")
    for (kind, name), values in scores.items():
        means = [statistics.fmean(column) for column in zip(*values, strict=True)]
        print(f"{kind:<8} {name:<14} {means[0]:8.2f} {means[1]:6.3f} {len(values):6d}")
    shown_rows = np.unique(np.linspace(0, len(rows) - 1, min(options.rows, len(rows))).round().astype(int))
    draw_sheet([rows[i] for i in shown_rows], options.sheet, notes=[notes[i] for i in shown_rows])


if __name__ == "__main__":
    main()
