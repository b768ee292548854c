"""One page that shows what a run did."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastinpaint.training.config import TrainConfig
from fastinpaint.training.metrics import VALIDATION, read_metrics
from fastinpaint.training.options import differences
from fastinpaint.training.run_folder import RunFolder

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }} td, th {{ padding: .1em 1em .1em 0; text-align: left }} img {{ max-width: 100% }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def write_report(folder: RunFolder, config: TrainConfig, state: str, best: Mapping[str, float]) -> Path:
    """Write ``report.html``: state, losses, validation, samples and options, pictures included.

    Args:
        folder: Of the run.
        config: Its options; those that are not the defaults are shown.
        state: What became of the run, in a sentence.
        best: Step and scores of the best validation; empty without one.
    """
    rows = read_metrics(folder.metrics)
    losses = _last(rows, "total")
    validated = _last(rows, VALIDATION)
    parts = [_paragraph(state), _picture(folder.curves, "losses over the steps")]
    if validated:
        heads = ("score", f"update {validated['step']}", f"best, update {best.get('step')}")
        scores = [
            (name.removeprefix(VALIDATION), f"{value:.4f}", f"{best.get(name, value):.4f}")
            for name, value in validated.items()
            if name.startswith(VALIDATION)
        ]
        parts.append(_table("Validation", heads, scores))
    samples = sorted(folder.samples.glob("step_*.png"))
    if samples:
        parts.append(f"<h2>Samples</h2>{_picture(samples[-1], 'what the generator makes of fixed pictures')}")
    if losses:
        shown = [(name, f"{value:.5g}") for name, value in losses.items()]
        parts.append(_table(f"Losses and speed by update {losses['step']}", ("name", "value"), shown))
    changed = [(name, str(value)) for name, (_, value) in differences(TrainConfig(), config).items()]
    parts.append(_table("Options that are not the defaults", ("option", "value"), changed))
    title = f"Training run {folder.path.name}"
    page = _PAGE.format(title=html.escape(title), body="\n".join(parts))
    folder.write(folder.report, page)
    return folder.report


def _last(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the last row with a name that begins so; empty if there is none."""
    return next((row for row in reversed(rows) if any(key.startswith(name) for key in row)), {})


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _picture(path: Path, text: str) -> str:
    if not path.is_file():
        return ""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img src="data:image/png;base64,{content}" alt="{html.escape(text)}"></p>'


def _table(title: str, heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = [_cells("th", heads), *(_cells("td", row) for row in rows)]
    return f"<h2>{html.escape(title)}</h2>\n<table>\n" + "\n".join(lines) + "\n</table>"


def _cells(kind: str, values: tuple[str, ...]) -> str:
    return f"<tr>{''.join(f'<{kind}>{html.escape(value)}</{kind}>' for value in values)}</tr>"
