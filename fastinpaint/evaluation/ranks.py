"""One evaluation on several processes (torchrun): each takes every n-th batch, all of them get all the results."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist

from fastinpaint.inference.precision import usable_device

T = TypeVar("T")


def start() -> tuple[int, int]:
    """Return rank and number of processes; joins the group that torchrun describes, over gloo, if there is one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def device(wanted: str | None) -> torch.device:
    """Return the wanted device, else this process's GPU if there is one, else the CPU."""
    if wanted is not None:
        return usable_device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def gather(mine: T) -> list[T]:
    """Return what every process hands in, by rank."""
    if not dist.is_initialized() or dist.get_world_size() < 2:
        return [mine]
    everyone: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
