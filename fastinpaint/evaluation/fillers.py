"""What fills the holes of a batch: a model, a baseline, or results that were filled before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from fastinpaint.evaluation.baselines import Filler
from fastinpaint.evaluation.cases import Case, Picture
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.models.inputs import assemble_input


class BatchFiller(Protocol):
    """Fills cases of one size."""

    def __call__(self, cases: Sequence[Case]) -> list[Picture]:
        """Return (H, W, 3) uint8 for each case, equal to the truth outside the hole."""


class ModelFiller:
    """A trained generator.

    Args:
        inpainter: The generator and its device.
        whole_input: Take edges and gradients of the whole picture, as the original system does in its tests, so that
            a rim of the hole is known to the network; False shows it the known pixels alone, as filling does.
    """

    def __init__(self, inpainter: Inpainter, whole_input: bool = False) -> None:
        self.inpainter, self.whole_input = inpainter, whole_input

    def __call__(self, cases: Sequence[Case]) -> list[Picture]:
        """Fill the cases in one batch."""
        truth = torch.from_numpy(np.stack([case.truth for case in cases])).permute(0, 3, 1, 2).float() / 255
        hole = torch.from_numpy(np.stack([hole_of(case) for case in cases]))[:, None]  # (B, 1, H, W)
        if self.whole_input:
            filled = self._fill_as_original(truth, hole)
        else:
            filled = self.inpainter(torch.where(hole, 0.5, truth), hole)
        rounded = (filled * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [
            np.where(hole_of(case)[..., None], pixels, case.truth) for pixels, case in zip(rounded, cases, strict=True)
        ]

    @torch.no_grad()
    def _fill_as_original(self, truth: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        device = self.inpainter.device
        inputs = assemble_input(truth.to(device) * 2 - 1, hole.to(device))
        return (self.inpainter.generator(inputs).images[0].clamp(-1, 1) + 1) / 2


class BaselineFiller:
    """A method without a network; the hole is first overwritten with noise, so that nothing can peek."""

    def __init__(self, fill: Filler) -> None:
        self.fill = fill

    def __call__(self, cases: Sequence[Case]) -> list[Picture]:
        """Fill the cases one by one."""
        return [self.fill(spoil(case), hole_of(case)) for case in cases]


class GivenResults:
    """Results that lie in files."""

    def __call__(self, cases: Sequence[Case]) -> list[Picture]:
        """Return the results as they were read."""
        results = [case.result for case in cases]
        if any(result is None for result in results):
            raise ValueError("a case has no result")
        return [result for result in results if result is not None]


def spoil(case: Case) -> Picture:
    """The picture with noise in the hole."""
    hole, picture = hole_of(case), case.truth.copy()
    picture[hole] = np.random.default_rng(0).integers(0, 256, (int(hole.sum()), 3), dtype=np.uint8)
    return picture


def hole_of(case: Case) -> np.ndarray:
    """The hole, (H, W) bool. Raises ValueError for a case without one."""
    if case.hole is None:
        raise ValueError(f"{case.spec.name} has no hole to fill")
    return case.hole
