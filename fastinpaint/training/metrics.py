"""Losses on record: rows of JSON, and the picture of their curves."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastinpaint.extras import extra
from fastinpaint.files import atomic_write

logger = logging.getLogger(__name__)

NOT_LOSSES = ("step", "seconds", "images_per_second", "learning_rate", "data_wait", "skipped")
VALIDATION = "validation_"  # how the names of validation's scores begin


class Board(Protocol):
    """Where rows are shown too."""

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Show a row."""


class MetricsLog:
    """A file with one JSON object a line.

    Each holds ``step``, ``seconds`` of training, ``images_per_second``, ``learning_rate``,
    ``data_wait`` (share of the time in which the trainer waited for images), ``skipped`` (share of updates whose
    gradients were not finite) and the mean losses; or ``step``, ``seconds`` and the scores of a validation.

    Rows after ``step`` are dropped on opening, so a resumed run leaves one row for each step; 0 drops all. Damaged
    lines are dropped too, and logged.
    """

    def __init__(self, path: Path, step: int = 0, board: Board | None = None) -> None:
        self.path, self.board = path, board
        kept = [row for row in read_metrics(path) if row["step"] <= step] if step else []
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row, and show it on the board if there is one."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
        if self.board is not None:
            self.board.add_row(row)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows; none if there is no file.

    Lines that are not whole rows, as crashes leave them (cut off, or zeros), are left out; a warning gives their number
    and the file.
    """
    content = path.read_bytes() if path.is_file() else b""
    rows, damaged = [], 0
    for line in content.split(b"\n"):
        if line:
            row = _row(line)
            rows += [] if row is None else [row]
            damaged += row is None
    if damaged:
        logger.warning("%s: %d damaged line%s left out", path, damaged, "" if damaged == 1 else "s")
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


class Window:
    """Losses and time since the last row of metrics; losses stay on the device until then.

    Args:
        batch_size: Images per update.
        step: Updates that are done.
    """

    def __init__(self, batch_size: int, step: int = 0) -> None:
        self.batch_size, self.step = batch_size, step
        self.rows: list[tuple[int, dict[str, Tensor]]] = []  # crop side in pixels, terms
        self.waited = 0.0  # seconds
        self.start = time.perf_counter()

    def add(self, size: int, terms: dict[str, Tensor], waited: float) -> None:
        """Take the terms of the next update, on crops of ``size`` pixels that took ``waited`` seconds to come."""
        self.rows.append((size, terms))
        self.waited += waited

    def close(self) -> tuple[dict[str, float], NotFinite | None]:
        """Begin anew.

        Returns:
            Speed and the mean of each term over the updates in which it is finite (NaN where it never is), and the
            first update in which a term is not.
        """
        names = dict.fromkeys(name for _, row in self.rows for name in row)
        columns = {
            name: [(number, row[name]) for number, (_, row) in enumerate(self.rows) if name in row] for name in names
        }
        values: list[dict[str, float]] = [{} for _ in self.rows]
        for name, column in columns.items():
            for (number, _), value in zip(column, torch.stack([term for _, term in column]).tolist(), strict=True):
                values[number][name] = value
        means = {}
        for name in names:
            finite = [row[name] for row in values if math.isfinite(row.get(name, math.nan))]
            means[name] = sum(finite) / len(finite) if finite else math.nan
        bad = next((n for n, row in enumerate(values) if not all(map(math.isfinite, row.values()))), None)
        first = None if bad is None else NotFinite(self.step + bad, self.rows[bad][0], values[bad])
        elapsed = time.perf_counter() - self.start
        speed, share = len(self.rows) * self.batch_size / elapsed, self.waited / elapsed
        self.step += len(self.rows)
        self.rows, self.waited, self.start = [], 0.0, time.perf_counter()
        return {"images_per_second": speed, "data_wait": share, **means}, first


class NotFinite:
    """An update whose losses are not all finite: its number counted from 0, its crop side in pixels, its terms."""

    def __init__(self, step: int, size: int, terms: dict[str, float]) -> None:
        self.step, self.size, self.terms = step, size, terms

    def __str__(self) -> str:
        wrong = ", ".join(f"{name} {value}" for name, value in self.terms.items() if not math.isfinite(value))
        return f"not finite in update {self.step + 1}: {wrong}"


def draw_curves(rows: list[dict[str, Any]], path: Path, *, log_scale: bool = True) -> None:
    """Draw each named loss over the steps as PNG, and validation's scores below; terms that are 0 are left out."""
    with extra("plots"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    names = list(dict.fromkeys(key for row in rows for key in row if key not in NOT_LOSSES))
    losses = [name for name in names if not name.startswith(VALIDATION)]
    scores = [name for name in names if name.startswith(VALIDATION)]
    figure = Figure(figsize=(8, 7.5 if scores else 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(2 if scores else 1, 1, 1)
    for name in losses:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if any(value for _, value in points):
            width = 2.0 if name == "total" else 1.0
            axes.plot(*zip(*points, strict=True), label=name, linewidth=width)
    axes.set(xlabel="step", ylabel="weighted loss")
    if log_scale and rows:
        axes.set_yscale("symlog" if any(row.get(n, 1) <= 0 for row in rows for n in losses) else "log")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    if scores:
        _draw_scores(figure.add_subplot(2, 1, 2), rows, scores)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _draw_scores(axes: Any, rows: list[dict[str, Any]], names: list[str]) -> None:
    """PSNR on the left axis, SSIM on the right."""
    right = axes.twinx()
    lines = []
    for number, name in enumerate(names):
        points = [(row["step"], row[name]) for row in rows if name in row]
        side, style = (right, "--") if "ssim" in name else (axes, "-")
        lines += side.plot(
            *zip(*points, strict=True), style, color=f"C{number}", marker=".", label=name.removeprefix(VALIDATION)
        )
    axes.set(xlabel="step", ylabel="validation PSNR, dB")
    right.set(ylabel="validation SSIM")
    axes.grid(alpha=0.3)
    axes.legend(handles=lines, loc="lower right", fontsize="small")
