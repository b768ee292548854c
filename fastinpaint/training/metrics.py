"""Losses on record: rows of JSON, and the picture of their curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastinpaint.extras import extra
from fastinpaint.files import atomic_write

_NOT_LOSSES = ("step", "seconds", "images_per_second", "learning_rate", "data_wait", "skipped")


class MetricsLog:
    """A file with one JSON object a line.

    Each holds ``step``, ``seconds`` of training, ``images_per_second``, ``learning_rate``,
    ``data_wait`` (share of the time in which the trainer waited for images), ``skipped`` (share of updates whose
    gradients were not finite) and the mean losses.

    Rows after ``step`` are dropped on opening, so a resumed run leaves one row for each step; 0 drops all.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] <= step] if step else []
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows; none if there is no file; a last line that a crash cut off is left out."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def draw_curves(rows: list[dict[str, Any]], path: Path, *, log_scale: bool = True) -> None:
    """Draw each named loss over the steps as PNG; terms that are 0 throughout are left out."""
    with extra("plots"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(key for row in rows for key in row if key not in _NOT_LOSSES))
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if any(value for _, value in points):
            width = 2.0 if name == "total" else 1.0
            axes.plot(*zip(*points, strict=True), label=name, linewidth=width)
    axes.set(xlabel="step", ylabel="weighted loss")
    if log_scale and rows:
        axes.set_yscale("symlog" if any(row.get(n, 1) <= 0 for row in rows for n in names) else "log")
    axes.grid(alpha=0.3)
    if axes.lines:
        figure.legend(loc="outside right center", fontsize="small")
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
