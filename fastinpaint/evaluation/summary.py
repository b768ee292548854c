"""Rows of scores as means with intervals, by method and kind of hole, and as differences between methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastinpaint.evaluation.cases import CaseSpec
from fastinpaint.evaluation.evaluate import Row
from fastinpaint.evaluation.intervals import Interval, bootstrap

ALL = "all"


@dataclass(frozen=True)
class Line:
    """Means of one method over the cases of one kind of hole (``"all"``: of every kind)."""

    hole: str
    method: str
    cases: int
    scores: dict[str, Interval]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"scores": {name: value._asdict() for name, value in self.scores.items()}}


def summarize(rows: Sequence[Row], specs: Sequence[CaseSpec], *, resamples: int = 2000, seed: int = 0) -> list[Line]:
    """Average by kind of hole and method."""
    lines = []
    for kind in _kinds(specs):
        chosen = [row for row in rows if kind in (ALL, specs[row.case].kind)]
        for method in dict.fromkeys(row.method for row in rows):
            mine = [row for row in chosen if row.method == method]
            if mine:
                lines.append(Line(kind, method, len(mine), _average(mine, specs, resamples, seed)))
    return lines


def differences(
    rows: Sequence[Row], specs: Sequence[CaseSpec], judged: str, *, resamples: int = 2000, seed: int = 0
) -> list[Line]:
    """Average what ``judged`` scores minus what each other method scores, over the cases that both filled."""
    ours = {row.case: row.scores for row in rows if row.method == judged}
    pairs = [
        Row(row.case, row.method, row.ratio, {n: ours[row.case][n] - v for n, v in row.scores.items()})
        for row in rows
        if row.method != judged
    ]
    return summarize(pairs, specs, resamples=resamples, seed=seed) if pairs else []


def _kinds(specs: Sequence[CaseSpec]) -> list[str]:
    kinds = list(dict.fromkeys(spec.kind for spec in specs))
    return [*kinds, ALL] if len(kinds) > 1 else [ALL]


def _average(rows: Sequence[Row], specs: Sequence[CaseSpec], resamples: int, seed: int) -> dict[str, Interval]:
    scores = {}
    for name in dict.fromkeys(name for row in rows for name in row.scores):
        known = [
            (row.scores[name], specs[row.case].name) for row in rows if not math.isnan(row.scores.get(name, math.nan))
        ]
        if known:
            values, groups = zip(*known, strict=True)
            scores[name] = bootstrap(values, groups, resamples=resamples, seed=seed)
    return scores
