"""Scalars and sample pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastinpaint.extras import extra
from fastinpaint.training.metrics import NOT_LOSSES, VALIDATION
from fastinpaint.visualize.sheets import Cell


class TensorBoard:
    """An event file in ``folder``; what an earlier run wrote there after ``step`` is hidden.

    Raises:
        ImportError: The package tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        with extra("tensorboard", "option tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add_row(self, row: Mapping[str, float]) -> None:
        """Write a row of metrics: scalars ``loss/...``, ``validation/...`` and ``run/...``."""
        for name, value in row.items():
            if name.startswith(VALIDATION):
                tag = f"validation/{name.removeprefix(VALIDATION)}"
            else:
                tag = f"run/{name}" if name in NOT_LOSSES else f"loss/{name}"
            if name != "step":
                self._writer.add_scalar(tag, value, int(row["step"]))

    def add_samples(self, rows: Sequence[Mapping[str, Cell]], step: int) -> None:
        """Write the cells of ``draw_samples`` as pictures ``sample 1/result half`` and so on."""
        for number, row in enumerate(rows, 1):
            for name, cell in row.items():
                self._writer.add_image(f"sample {number}/{name}", cell, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
