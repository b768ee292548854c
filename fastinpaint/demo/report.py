"""The demo's pictures and its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fastinpaint.demo.learning import Lesson
from fastinpaint.demo.photographs import Case, signed_tensor
from fastinpaint.demo.scores import METHODS, Scores, hole_psnr
from fastinpaint.files import atomic_write
from fastinpaint.training.metrics import MetricsLog, draw_curves
from fastinpaint.training.train_step import TrainStep
from fastinpaint.visualize.sheets import Cell, draw_sheet, edge_cell, gradient_cell

_CURVE_POINTS = 200


@torch.no_grad()
def draw_contact_sheet(
    path: Path, train_step: TrainStep, groups: Sequence[tuple[Sequence[Case], Scores]], rows: int
) -> None:
    """Draw ``rows`` cases of each group, spread evenly: hole, result, Telea, truth, predicted structure."""
    cells, notes = [], []
    for cases, scores in groups:
        step = max(len(cases) // rows, 1)
        for index in range(0, len(cases), step):
            case = cases[index]
            cells.append(_row(train_step, case, {name: scores.filled[name][index] for name in METHODS[:2]}))
            values = ", ".join(f"{name} {hole_psnr(scores.filled[name][index], case):.1f} dB" for name in METHODS)
            notes.append(f"{case.name}: {values}")
    draw_sheet(cells, path, notes=notes)


def _row(train_step: TrainStep, case: Case, filled: dict[str, Cell]) -> dict[str, Cell]:
    hole = case.picture.copy()
    hole[case.hole] = 255
    mask = torch.from_numpy(case.hole)[None, None].float().to(train_step.device)
    gradients = train_step.predict(signed_tensor(case.picture[None]).to(train_step.device), mask).gradients[0][0]
    return {
        "hole": hole,
        "result": filled["fastinpaint"],
        "Telea": filled["Telea"],
        "truth": case.picture,
        "predicted edges": edge_cell(gradients),
        "predicted gradients": gradient_cell(gradients),
    }


def write_losses(table: Path, curves: Path, lesson: Lesson) -> None:
    """Write the losses as rows of JSON and draw them, averaged so that about 200 points remain."""
    width = max(len(lesson.losses) // _CURVE_POINTS, 1)
    blocks = [lesson.losses[start : start + width] for start in range(0, len(lesson.losses), width)]
    rows = [
        {
            "step": index * width + len(block),
            **{name: sum(row[name] for row in block) / len(block) for name in block[0]},
        }
        for index, block in enumerate(blocks)
    ]
    log = MetricsLog(table)
    for row in rows:
        log.write(row)
    draw_curves(rows, curves)


def write_report(path: Path, lesson: Lesson, milliseconds: float, size: int, seen: Scores, unseen: Scores) -> str:
    """Write the table as Markdown; return it."""
    lines = [
        f"| PSNR inside the holes (mean, dB) | holes | {' | '.join(METHODS)} |",
        "|---|---|---|---|---|",
        f"| new holes in photographs it was trained on | {seen.holes} | {_values(seen)} |",
        f"| holes in photographs it never saw | {unseen.holes} | {_values(unseen)} |",
        "",
        f"| speed at {size} x {size} | |",
        "|---|---|",
        f"| training | {lesson.images_per_second:.1f} images/s ({lesson.steps} updates) |",
        f"| filling, one image at a time | {milliseconds:.0f} ms per image |",
    ]
    text = "\n".join(lines) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _values(scores: Scores) -> str:
    return " | ".join(f"{scores.psnr[name]:.1f}" for name in METHODS)
