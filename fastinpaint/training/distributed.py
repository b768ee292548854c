"""One run on several processes, as torchrun starts them; a single process is the case of one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastinpaint.inference.precision import usable_device

_TIMEOUT = timedelta(hours=2)  # the first process may decode a data set, or write a checkpoint, while others wait


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; every method is called by all of them, in the same order.

    Tensors of the device are reduced over nccl or gloo. What the processes agree on, flags and times, goes over gloo
    in any case, so that it never waits for a GPU.

    Attributes:
        device: Of this process.
        rank: Number of this process, from 0.
        count: Number of processes.
        local_rank: Number of this process on its machine.
        local_count: Number of processes on its machine.
        control: The gloo group; None for one process.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def file(self, name: str) -> str:
        """Return a file name of this process's own, with its rank before the suffix; as it is for one process."""
        stem, suffix = os.path.splitext(name)
        return name if self.count == 1 else f"{stem}-{self.rank}{suffix}"

    def require_divisible(self, batch_size: int, accumulate: int) -> None:
        """Raise ValueError unless every process and micro-batch gets the same number of images."""
        if batch_size % (self.count * accumulate):
            raise ValueError(
                f"option batch_size must be a multiple of the processes times accumulate, "
                f"{self.count} x {accumulate}, got {batch_size}"
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, differentiably: the gradient is that of the sum of all processes' losses."""
        return tensor if self.count == 1 else _Sum.apply(tensor)

    def start_sum(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        """Begin to sum each tensor over the processes; the function returned waits and stores the sums in place."""
        if self.count == 1 or not tensors:
            return lambda: None
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        work = dist.all_reduce(flat, async_op=True)

        def finish() -> None:
            work.wait()
            parts = flat.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])

        return finish

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Return whether any process wants to stop, and the first process's ``seconds``.

        Raises:
            ConnectionError: Another process has ended.
        """
        if self.count == 1:
            return stop, seconds
        message = torch.tensor([float(stop), seconds if self.main else -math.inf], dtype=torch.float64)
        try:
            dist.all_reduce(message, dist.ReduceOp.MAX, group=self.control)
        except RuntimeError as error:
            raise ConnectionError(f"another process of this run has ended; its message says why ({error})") from error
        return bool(message[0]), float(message[1])

    def require_same(self, what: str, value: Any) -> None:
        """Raise RuntimeError unless ``value`` is equal in all processes."""
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise RuntimeError(f"{what} must be the same in all processes, got {values} by rank")

    def require_same_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise RuntimeError naming the first tensor whose bits differ between processes."""
        if self.count == 1:
            return
        sums = torch.stack([_bits(tensor) for tensor in tensors.values()]).cpu()
        both = torch.cat([sums, -sums])
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.control)
        highest, lowest = both[: len(sums)], -both[len(sums) :]
        for name, different in zip(tensors, (highest != lowest).tolist(), strict=True):
            if different:
                raise RuntimeError(f"{name} is no longer the same in all processes")

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, by rank."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value, group=self.control)
        return values

    def on_main(self, call: Callable[[], None]) -> None:
        """Let the main process alone call; what it raises is raised by all."""
        error: Exception | None = None
        if self.main:
            try:
                call()
            except Exception as raised:  # whatever it is, the others must not wait for this process
                error = raised
        error = self.gather(error)[0]
        if error is not None:
            raise error

    @contextmanager
    def first_on_machine(self) -> Iterator[None]:
        """Let the first process of each machine run the block before the others, which find what it left in files."""
        first = self.local_rank == 0
        if not first:
            self._wait()
        try:
            yield
        finally:
            if first:
                self._wait()

    def _wait(self) -> None:
        if self.count > 1:
            dist.barrier(group=self.control)


def join(device: str = "auto") -> Ranks:
    """Join the processes that torchrun describes in the environment, over nccl on CUDA and gloo on CPUs.

    Args:
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda``, or for one process a certain device. On CUDA each
            process of a machine takes the device of its local number.

    Raises:
        ValueError: A device that cannot be used, a certain device for several processes, or more processes than devices
            on this machine.
    """
    wanted = None if device == "auto" else device
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks(usable_device(wanted))
    chosen = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if chosen.type == "cuda":
        if chosen.index is not None:
            raise ValueError(f"option device must be auto, cpu or cuda with {count} processes, got {device}")
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                "start as many with torchrun's --nproc-per-node"
            )
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        cuda = chosen.type == "cuda"
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT, device_id=chosen if cuda else None)
    return Ranks(
        chosen,
        dist.get_rank(),
        dist.get_world_size(),
        local_rank,
        int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        dist.new_group(backend="gloo", timeout=_TIMEOUT),
    )


def leave() -> None:
    """Leave the processes that ``join`` joined; nothing for one process."""
    if dist.is_initialized():
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """Sum of a tensor over the processes. The gradient of the sum of their losses is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def _bits(tensor: Tensor) -> Tensor:
    """Sum of a tensor's bits, read as integers, int64."""
    flat = tensor.detach().contiguous().flatten()
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[flat.element_size()]
    return flat.view(integers).sum(dtype=torch.int64)
