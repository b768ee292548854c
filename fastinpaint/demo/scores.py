"""How well holes are filled: ours beside Telea's method and the mean colour."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastinpaint.demo.photographs import Case, Picture
from fastinpaint.evaluation.baselines import Filler, mean_color, telea
from fastinpaint.inference.inpainter import Inpainter

METHODS = ("fastinpaint", "Telea", "mean colour")


@dataclass(frozen=True)
class Scores:
    """Mean PSNR inside the holes in dB by method, and the pictures that each filled."""

    holes: int
    psnr: dict[str, float]
    filled: dict[str, list[Picture]]


def compare(inpainter: Inpainter, cases: Sequence[Case], seed: int = 0) -> Scores:
    """Fill every case by each method; the holes are first overwritten with noise, so that nobody can peek."""
    rng = np.random.default_rng(seed)
    fillers: dict[str, Filler] = dict(zip(METHODS, (inpainter, telea, mean_color), strict=True))
    spoiled = [_spoil(case, rng) for case in cases]
    filled = {
        name: [filler(picture, case.hole) for picture, case in zip(spoiled, cases, strict=True)]
        for name, filler in fillers.items()
    }
    psnr = {
        name: statistics.fmean(hole_psnr(picture, case) for picture, case in zip(pictures, cases, strict=True))
        for name, pictures in filled.items()
    }
    return Scores(len(cases), psnr, filled)


def hole_psnr(picture: Picture, case: Case) -> float:
    """Peak signal-to-noise ratio in dB over the pixels of the hole."""
    error = picture[case.hole].astype(np.float64) - case.picture[case.hole]
    return 10 * math.log10(255**2 / max(float(np.mean(error**2)), 1e-10))


def milliseconds_per_image(inpainter: Inpainter, case: Case, repeats: int = 7) -> float:
    """Median time to fill one picture after a first one, in ms."""
    times: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        inpainter(case.picture, case.hole)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _spoil(case: Case, rng: np.random.Generator) -> Picture:
    picture = case.picture.copy()
    picture[case.hole] = rng.integers(0, 256, (int(case.hole.sum()), 3), dtype=np.uint8)
    return picture
