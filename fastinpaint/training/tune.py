"""Compile and tune, ahead of a run, the Triton kernels that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.ops._tuning import choices, tuning_gap, tuning_on
from fastinpaint.training.build import build_train_step
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.distributed import Ranks

if TYPE_CHECKING:
    from fastinpaint.ops._tuning import Choice


def tune(config: TrainConfig) -> list[Choice]:
    """Take one update at each of the run's sizes, and fill pictures of its size, one alone and a batch.

    Triton keeps compiled kernels and choices on disk, for its version, the kernel's source and the GPU's compute
    capability; later processes find them there. Pictures are random; nothing is read or written beside that cache.
    ``config.data`` and ``config.vgg`` are not needed.

    Args:
        config: Options of the run; ``batch_size`` counts the images of one process.

    Returns:
        What was chosen for each problem of each kernel that has several configurations.

    Raises:
        RuntimeError: There is no GPU, or it has no Triton kernels.
        ValueError: An option that makes no sense.
    """
    losses = replace(config.losses, content=0.0, style=0.0)  # no Triton kernel in them, and no weights to look for
    config = replace(config, data=config.data or "none", losses=losses, cuda_graph="off", compile=False)
    config.validate()
    device = torch.device("cuda" if config.device == "auto" else config.device)
    gap = tuning_gap(device) if torch.cuda.is_available() else _no_gpu()
    if gap is not None:
        raise RuntimeError(f"there is nothing to tune: {gap}")
    with tuning_on():
        warm_up(config, device)
    return choices()


def _no_gpu() -> str:
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
    return f"torch sees no GPU ({built}); run this on the machine that will train, a CPU needs no tuning"


def warm_up(config: TrainConfig, device: torch.device) -> None:
    """Run what training and filling run, at their shapes."""
    train_step = build_train_step(config, Ranks(device))
    for size in sorted({config.first_size or config.image_size, config.image_size}):
        images = torch.randint(0, 256, (config.batch_size, 3, size, size), dtype=torch.uint8)
        train_step.update(images, _hole(1 if config.masks.shared else config.batch_size, size))
    size = config.image_size
    for precision in ("bfloat16", "float32"):
        inpainter = Inpainter(train_step.result, device, max_side=0, precision=precision)
        for count in sorted({1, config.batch_size}):
            inpainter(torch.rand(count, 3, size, size), _hole(1, size))


def _hole(count: int, size: int) -> torch.Tensor:
    """(count, 1, size, size), 1 in a square of half the side."""
    mask = torch.zeros(count, 1, size, size)
    mask[..., size // 4 : size * 3 // 4, size // 4 : size * 3 // 4] = 1
    return mask


def table(choices: Sequence[Choice]) -> str:
    """Lines for people: kernel, problem, configuration, microseconds of a launch and of the first configuration's."""
    if not choices:
        return "no kernel of this run has several configurations; all are compiled"
    rows: list[tuple[str, ...]] = [("kernel", "problem", "configuration", "us", "first")]
    for choice in choices:
        times = ("-" if seconds is None else f"{seconds * 1e6:.4g}" for seconds in (choice.seconds, choice.first))
        rows.append((choice.kernel, choice.problem, choice.configuration, *times))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
