"""The results of an evaluation as a table, CSV, JSON and a contact sheet."""

from __future__ import annotations

import csv
import hashlib
import io
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastinpaint
from fastinpaint.evaluation.cases import Case
from fastinpaint.evaluation.evaluate import Evaluation, Row, table_of
from fastinpaint.evaluation.metrics import HIGHER_IS_BETTER, Definition
from fastinpaint.evaluation.summary import Line, differences, summarize
from fastinpaint.files import atomic_write, write_json
from fastinpaint.models.pretrained import WEIGHTS, find_model
from fastinpaint.visualize.sheets import Cell, draw_sheet

CASES, SUMMARY, TABLE, SHEET = "cases.csv", "summary.json", "report.md", "contact_sheet.png"
_DIGITS = {"psnr": 2, "mae": 4}
_TITLES = {
    "mae": "MAE",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "uqi": "UQI",
    "vif": "VIF",
    "lpips": "LPIPS",
}


def write_report(
    evaluation: Evaluation, rows: Sequence[Row], output: Path, *, resamples: int = 2000, sheet_rows: int = 3
) -> str:
    """Write every file of the report below ``output``; return the table."""
    options = evaluation.options
    settings = {"resamples": resamples, "seed": options.seed}
    lines = summarize(rows, evaluation.specs, **settings)
    pairs = differences(rows, evaluation.specs, evaluation.judged, **settings)
    text = _markdown(evaluation, lines, pairs)
    _write_text(output / CASES, _csv(table_of(rows, evaluation.specs)))
    _write_text(output / TABLE, text)
    write_json(output / SUMMARY, _json(evaluation, lines, pairs, resamples))
    if sheet_rows:
        draw_extremes(evaluation, rows, output / SHEET, sheet_rows)
    return text


def draw_extremes(evaluation: Evaluation, rows: Sequence[Row], path: Path, count: int) -> None:
    """Draw the ``count`` best, median and worst cases of the judged method, by PSNR inside the hole if there is one."""
    judged = [row for row in rows if row.method == evaluation.judged]
    key = next((name for name in ("psnr_hole", "psnr") if name in judged[0].scores), next(iter(judged[0].scores)))
    better = HIGHER_IS_BETTER[key.removesuffix("_hole")]
    ranking = sorted(judged, key=lambda row: row.scores[key], reverse=better)
    beside = next((method for method in ("Telea", *evaluation.fillers) if method in evaluation.fillers), "")
    cells, notes = [], []
    for group, row in _extremes(ranking, count):
        cell, case = _cells(evaluation, row.case, beside)
        cells.append(cell)
        values = [(row.method, row.scores[key])]
        values += [(r.method, r.scores[key]) for r in rows if r.case == row.case and r.method == beside != row.method]
        scores = ", ".join(f"{method} {value:.{_digits(key)}f}" for method, value in values)
        hole = f" {case.spec.kind} {case.ratio:.0%}" if case.ratio is not None else ""
        notes.append(f"{group}: {case.spec.name}{hole}: {_title(key)}: {scores}")
    draw_sheet(cells, path, cell=256, notes=notes)


def _extremes(ranking: Sequence[Row], count: int) -> list[tuple[str, Row]]:
    """Name and row of the best, median and worst ones, without repeating any."""
    count = min(count, max(len(ranking) // 3, 1))
    middle = (len(ranking) - count) // 2
    places = {"best": range(count), "median": range(middle, middle + count)}
    places["worst"] = range(len(ranking) - count, len(ranking))
    seen: set[int] = set()
    chosen = []
    for group, indices in places.items():
        for index in indices:
            if index not in seen:
                seen.add(index)
                chosen.append((group, ranking[index]))
    return chosen


def _cells(evaluation: Evaluation, index: int, beside: str) -> tuple[dict[str, Cell], Case]:
    case, ours = evaluation.fill(index, evaluation.judged)
    cells: dict[str, Cell] = {}
    if case.hole is not None:
        cells["hole"] = np.where(case.hole[..., None], np.uint8(255), case.truth)
    cells[evaluation.judged] = ours
    if beside and beside != evaluation.judged:
        cells[beside] = evaluation.fill(index, beside)[1]
    cells["truth"] = case.truth
    return cells, case


def _markdown(evaluation: Evaluation, lines: Sequence[Line], pairs: Sequence[Line]) -> str:
    options, definition = evaluation.options, evaluation.options.definition
    images = len({spec.name for spec in evaluation.specs})
    size = f" at {options.image_size} x {options.image_size}" if options.image_size and options.results is None else ""
    text = [
        f"{images} pictures{size}, {len(evaluation.specs)} cases. Metrics: {definition.name}. {definition.explanation}",
        "Means with 95 % bootstrap intervals over pictures.",
    ]
    if options.as_original and options.model is not None:
        text.append("The model was shown edges and gradients of the whole picture, as in the original system's tests.")
    for title, suffix in (("Inside the hole", "_hole"), ("Whole picture", "")):
        text += _section(title, lines, _names(lines, definition, suffix))
    for title, suffix in (("inside the hole", "_hole"), ("whole picture", "")):
        heading = f"{evaluation.judged} minus each other method, same cases, {title}"
        text += _section(heading, pairs, _names(pairs, definition, suffix), signed=True)
    if evaluation.frechet:
        text += ["", "### FID (lower), all results beside the true pictures", ""]
        text += [f"- {method}: {value:.3f}" for method, value in evaluation.frechet.items()]
    text += ["", *evaluation.notes]
    return "\n".join(text) + "\n"


def _names(lines: Sequence[Line], definition: Definition, suffix: str) -> list[str]:
    found = {name for line in lines for name in line.scores}
    return [name + suffix for name in (*definition.metrics, "lpips") if name + suffix in found]


def _section(title: str, lines: Sequence[Line], names: Sequence[str], signed: bool = False) -> list[str]:
    if not lines or not names:
        return []
    heads = ["holes", "method", "cases", *(f"{_title(name)} {_arrow(name)}" for name in names)]
    body = [[line.hole, line.method, str(line.cases), *(_cell(line, name, signed) for name in names)] for line in lines]
    widths = [max(len(row[i]) for row in [heads, *body]) for i in range(len(heads))]
    rule = ["-" * width for width in widths]
    return ["", f"### {title}", "", *(_row(cells, widths) for cells in (heads, rule, *body))]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _cell(line: Line, name: str, signed: bool) -> str:
    if name not in line.scores:
        return "-"
    score, digits, sign = line.scores[name], _digits(name), "+" if signed else ""
    return f"{score.mean:{sign}.{digits}f} [{score.low:{sign}.{digits}f}, {score.high:{sign}.{digits}f}]"


def _title(name: str) -> str:
    base = name.removesuffix("_hole")
    return _TITLES.get(base, base)


def _digits(name: str) -> int:
    return _DIGITS.get(name.removesuffix("_hole"), 3)


def _arrow(name: str) -> str:
    return "(higher)" if HIGHER_IS_BETTER[name.removesuffix("_hole")] else "(lower)"


def _json(evaluation: Evaluation, lines: Sequence[Line], pairs: Sequence[Line], resamples: int) -> dict[str, Any]:
    options = evaluation.options
    return {
        "definition": {"name": options.definition.name, "explanation": options.definition.explanation},
        "pictures": len({spec.name for spec in evaluation.specs}),
        "cases": len(evaluation.specs),
        "image_size": options.image_size if options.results is None else None,
        "seed": options.seed,
        "resamples": resamples,
        "judged": evaluation.judged,
        "whole_input": options.as_original and options.model is not None,
        "model_sha256": _sha256(find_model(options.model) / WEIGHTS) if options.model is not None else None,
        "scores": [line.as_json() for line in lines],
        "differences": [line.as_json() for line in pairs],
        "fid": evaluation.frechet,
        "notes": evaluation.notes,
        "device": str(evaluation.device),
        "processes": evaluation.world,
        "versions": {
            "fastinpaint": fastinpaint.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names that are no text
