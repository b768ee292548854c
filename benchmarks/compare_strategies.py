"""``python -m benchmarks.compare_strategies``: fill large photographs by each strategy; how sharp are the fillings?

Draws a sheet with the surroundings of each hole at full resolution, and prints for every strategy the time, the PSNR
inside the hole and its sharpness: the mean absolute Laplacian of the filling, relative to the photograph's own there.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import numpy.typing as npt
import skimage.data

from fastinpaint.demo.photographs import Case
from fastinpaint.demo.scores import hole_psnr
from fastinpaint.inference.inpainter import Inpainter, Strategy
from fastinpaint.visualize.sheets import draw_sheet

NAMES = ("retina", "stereo_motorcycle", "rocket")  # above 512 pixels
Picture = npt.NDArray[np.uint8]
Hole = npt.NDArray[np.bool_]


def sharpness(picture: Picture, hole: Hole) -> float:
    """Mean absolute Laplacian of the luminance of (H, W, 3) in the hole, 0 to 1020."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_32F))[hole].mean())


def scratch(height: int, width: int) -> Hole:
    """A box and a curved stroke, both of a size that scales with the picture."""
    side, hole = min(height, width), np.zeros((height, width), np.uint8)
    top, left = height // 3, width // 2
    hole[top : top + side // 8, left : left + side // 6] = 1
    cv2.ellipse(hole, (width // 3, height // 2), (side // 6, side // 4), 30, 0, 200, 1, side // 40)
    return hole.astype(bool)


def main() -> None:
    """Fill, print a table, draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_strategies", description=__doc__)
    parser.add_argument("--model", default="small")
    parser.add_argument("--names", nargs="*", default=NAMES, help="photographs of skimage.data")
    parser.add_argument("--out", type=Path, help="PNG file of the sheet")
    options = parser.parse_args()
    rows = []
    print("| photograph | strategy | seconds | PSNR, dB | sharpness |\n| --- | --- | --- | --- | --- |")
    for name in options.names:
        found = getattr(skimage.data, name)()
        truth = np.asarray(found[0] if isinstance(found, tuple) else found)
        hole = scratch(*truth.shape[:2])
        spots, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        view = np.s_[max(spots[0] - 40, 0) : spots[-1] + 40, max(columns[0] - 40, 0) : columns[-1] + 40]
        row = {"hole": np.where(hole[..., None], np.uint8(255), truth)[view]}
        for strategy in get_args(Strategy):
            fill = Inpainter.from_pretrained(options.model, strategy=strategy)
            start = time.perf_counter()
            filled = fill(truth, hole)
            seconds = time.perf_counter() - start
            relative = sharpness(filled, hole) / sharpness(truth, hole)
            sides = f"{truth.shape[1]} x {truth.shape[0]}"
            psnr = hole_psnr(filled, Case(name, truth, hole))
            print(f"| {name}, {sides} | {strategy} | {seconds:.2f} | {psnr:.2f} | {relative:.2f} |", flush=True)
            row[strategy] = filled[view]
        rows.append({**row, "photograph": truth[view]})
    if options.out is not None:
        draw_sheet(rows, options.out, cell=320)


if __name__ == "__main__":
    main()
