"""What a saved run and the options that resume it have in common."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fastinpaint.training.config import TrainConfig
from fastinpaint.training.options import differences, from_mapping, modernise

logger = logging.getLogger(__name__)

_RENAMED = {"kernels_optimizer": "muon_optimizer"}  # in checkpoints


def modern_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's entries under the names that they have today."""
    return {_RENAMED.get(name, name): value for name, value in state.items()}


def compare_options(path: Path, saved: dict[str, Any] | None, config: TrainConfig, step: int) -> None:
    """Log every option that differs from those of the run so far; refuse what cannot differ.

    Args:
        path: Checkpoint, for messages.
        saved: The options in it; None, as in old checkpoints: those of the run's folder count.
        config: Options from now on.
        step: Updates so far.

    Raises:
        ValueError: Networks of another shape, or ``init_from``, which begins a new run.
    """
    before = (
        TrainConfig.of_run(config.output) if saved is None else from_mapping(TrainConfig, modernise(TrainConfig, saved))
    )
    networks = before.networks
    for name, value in config.networks.items():
        if networks.get(name) != value:
            raise ValueError(f"{path} does not fit these options: {name} was {networks.get(name)}, now {value}")
    changed = differences(before, config)
    if "init_from" in changed:
        raise ValueError("init_from begins a new run: take another --output, or leave it out to resume")
    changed.pop("output", None)
    for name, (old, new) in changed.items():
        logger.warning("option %s was %s until update %d and is %s from now on", name, old, step, new)


def compare_circumstances(images: tuple[int | None, int], processes: tuple[int, int], step: int) -> None:
    """Log numbers of images and of processes that differ, (before, now), after ``step`` updates."""
    if images[0] not in (None, images[1]):
        logger.warning("there were %s images until update %d and are %d now", images[0], step, images[1])
    if processes[0] != processes[1]:
        logger.info(
            "saved by %d process%s, resumed by %d: the same batches, sums in another order",
            *(processes[0], "" if processes[0] == 1 else "es", processes[1]),
        )
