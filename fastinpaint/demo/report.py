"""The demo's pictures and its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastinpaint.demo.learning import Lesson
from fastinpaint.demo.photographs import Case, signed_tensor
from fastinpaint.demo.scores import METHODS, Scores, hole_psnr
from fastinpaint.files import atomic_write
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.models.inputs import assemble_known_input
from fastinpaint.training.metrics import MetricsLog, draw_curves
from fastinpaint.visualize.sheets import Cell, draw_sheet, edge_cell, gradient_cell

if TYPE_CHECKING:
    from fastinpaint.demo import DemoSettings

_CURVE_POINTS = 200


def draw_filled(path: Path, generator: InpaintGenerator, cases: Sequence[Case], scores: Scores, rows: int) -> None:
    """Draw ``rows`` cases, spread evenly: hole, result, Telea, truth, predicted structure."""
    cells, notes = [], []
    for index in _spread(len(cases), rows):
        case = cases[index]
        filled = {name: scores.filled[name][index] for name in METHODS}
        edges, gradients = _structure(generator, case)
        cells.append(
            {
                "hole": _with_hole(case),
                "fastinpaint": filled["fastinpaint"],
                "Telea": filled["Telea"],
                "truth": case.picture,
                "predicted edges": edges,
                "predicted gradients": gradients,
            }
        )
        values = ", ".join(f"{name} {hole_psnr(picture, case):.1f} dB" for name, picture in filled.items())
        notes.append(f"{case.name}: {values}")
    draw_sheet(cells, path, notes=notes)


def draw_fine_tuning(
    path: Path,
    generators: tuple[InpaintGenerator, InpaintGenerator],
    cases: Sequence[Case],
    scores: Sequence[Scores],
    rows: int,
) -> None:
    """Draw ``rows`` cases, spread evenly: results, predicted edges and gradients before and after fine-tuning."""
    cells, notes = [], []
    for index in _spread(len(cases), rows):
        case = cases[index]
        row = {"hole": _with_hole(case), "truth": case.picture}
        results = {
            when: score.filled["fastinpaint"][index] for when, score in zip(("before", "after"), scores, strict=True)
        }
        row |= results
        for when, generator in zip(results, generators, strict=True):
            row[f"edges {when}"], row[f"gradients {when}"] = _structure(generator, case)
        cells.append(row)
        values = ", ".join(f"{when} {hole_psnr(picture, case):.1f} dB" for when, picture in results.items())
        notes.append(f"{case.name}: {values}")
    draw_sheet(cells, path, notes=notes)


def _spread(count: int, rows: int) -> range:
    """At most ``rows`` of ``count`` indices, evenly spread."""
    return range(0, count, max(-(-count // rows), 1))


def _with_hole(case: Case) -> Cell:
    return np.where(case.hole[..., None], np.uint8(255), case.picture)


@torch.no_grad()
def _structure(generator: InpaintGenerator, case: Case) -> tuple[Cell, Cell]:
    """The edges and gradients that a generator predicts for the filled picture."""
    device = next(generator.parameters()).device
    image = signed_tensor(case.picture[None]).to(device)
    mask = torch.from_numpy(case.hole)[None, None].float().to(device)
    gradients = generator(assemble_known_input(image, mask)).gradients[0][0]
    return edge_cell(gradients), gradient_cell(gradients)


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


def write_report(
    path: Path,
    lesson: Lesson,
    milliseconds: float,
    settings: DemoSettings,
    unseen: Scores,
    own: Sequence[Scores],
) -> str:
    """Write the table as Markdown; return it."""
    before, after = own
    size, tuned = (f"{side} x {side}" for side in (settings.size, settings.tune_size))
    lines = [
        f"| PSNR inside the holes (mean, dB) | holes | {' | '.join(METHODS)} |",
        "|---|---|---|---|---|",
        f"| photographs it never saw, {size} | {unseen.holes} | {_values(unseen)} |",
        f"| your pictures before fine-tuning, {tuned} | {before.holes} | {_values(before)} |",
        f"| the same after fine-tuning on them, memorised | {after.holes} | {_values(after)} |",
        "",
        "| speed | |",
        "|---|---|",
        f"| fine-tuning at {tuned} | {lesson.images_per_second:.1f} images/s ({lesson.steps} updates) |",
        f"| filling at {size}, one image at a time | {milliseconds:.0f} ms per image |",
    ]
    text = "\n".join(lines) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _values(scores: Scores) -> str:
    return " | ".join(f"{scores.psnr[name]:.1f}" for name in METHODS)
