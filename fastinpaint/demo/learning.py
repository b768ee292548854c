"""Training against the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from fastinpaint.training.train_step import TrainStep

_WARMUP = 0.02  # part of the time


@dataclass(frozen=True)
class Lesson:
    """What training did: updates, images per second, and the losses of every update."""

    steps: int
    images_per_second: float
    losses: list[dict[str, float]]


def train_for(
    train_step: TrainStep,
    batches: Iterator[tuple[Tensor, Tensor]],
    seconds: float,
    updates: int | None = None,
) -> Lesson:
    """Train for a time, or for a number of updates; the learning rate rises and falls with the part that is over.

    Raises:
        FloatingPointError: The loss is no longer finite.
    """
    rows: list[dict[str, Tensor]] = []
    images = 0
    start = time.perf_counter()
    with tqdm(total=100, bar_format="training {l_bar}{bar}| {elapsed} {postfix}") as bar:
        while (part := _part(time.perf_counter() - start, seconds, len(rows), updates)) < 1:
            train_step.scale_learning_rates(_pace(part))
            image, mask = (tensor.to(train_step.device) for tensor in next(batches))
            rows.append(train_step.update(image, mask))
            images += len(image)
            if len(rows) % 10 == 1:
                bar.n = round(100 * part)
                _show(bar, images / (time.perf_counter() - start), rows[-1])
        elapsed = time.perf_counter() - start
    losses = [{name: float(value) for name, value in row.items()} for row in rows]
    return Lesson(len(rows), images / elapsed, losses)


def _part(elapsed: float, seconds: float, done: int, updates: int | None) -> float:
    """How much of the training is over; never all of it before the first update."""
    if updates is not None:
        return done / updates
    return elapsed / seconds if done else 0.0


def _pace(part: float) -> float:
    """Factor on the learning rate at this part of the time: a short rise, then half a cosine."""
    return min(part / _WARMUP + 0.01, 1.0) * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def _show(bar: tqdm[NoReturn], speed: float, row: dict[str, Tensor]) -> None:
    if not torch.isfinite(row["total"]):
        raise FloatingPointError("the demo's loss is no longer finite")
    shown = " ".join(f"{name} {float(row[name]):.3f}" for name in ("l1_hole", "l1_valid", "total"))
    bar.set_postfix_str(f"{speed:.1f} images/s {shown}")
