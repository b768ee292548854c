"""What every launcher needs: the device of its tensors, and tuning."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

Blocks = Mapping[str, int]


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU current: Triton launches on the current device and its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def programs_bucket(programs: int, tensor: Tensor) -> int:
    """0, 1 or 2: programs that leave multiprocessors idle, that fill them less than four times, or more often."""
    multiprocessors = _multiprocessors(tensor.device)
    return 0 if programs <= multiprocessors else 1 if programs <= 4 * multiprocessors else 2


class TunedFamilies:
    """A kernel with several families of configurations, tuned within the one that suits its arguments.

    Each family has a tuner of its own: one with a single configuration never measures anything (Triton 3.6 would, were
    it told to prune a longer list). While a CUDA graph is captured nothing can be measured: what has not been tuned
    before takes the first configuration of its family.
    """

    def __init__(
        self,
        kernel: Any,
        families: Mapping[str, Sequence[triton.Config]],
        family: Callable[[Mapping[str, Any]], str],
        key: Sequence[str],
    ) -> None:
        self.names = kernel.arg_names
        self.family = family
        self.key = tuple(key)
        self.tuners = {
            name: triton.autotune(configs=list(configs), key=list(key), cache_results=True)(kernel)
            for name, configs in families.items()
        }
        self.tuned: set[tuple[Any, ...]] = set()

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        """The launcher for a grid; all arguments are positional."""
        return lambda *arguments: self._launch(grid, arguments)

    def _launch(self, grid: Any, arguments: tuple[Any, ...]) -> Any:
        named = dict(zip(self.names, arguments, strict=False))
        name = self.family(named)
        tuner = self.tuners[name]
        problem = (name, *(named[k] for k in self.key), *(a.dtype for a in arguments if isinstance(a, Tensor)))
        if problem in self.tuned or len(tuner.configs) == 1:
            return tuner[grid](*arguments)
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            first = tuner.configs[0]
            return tuner.fn[grid](*arguments, **first.all_kwargs())
        result = tuner[grid](*arguments)
        self.tuned.add(problem)
        return result


def autotune(
    families: Mapping[str, Sequence[triton.Config]], family: Callable[[Mapping[str, Any]], str], key: Sequence[str]
) -> Callable[[Any], TunedFamilies]:
    """``triton.autotune`` among one family of configurations, its choice remembered on disk.

    Args:
        families: Name to configurations, the likely best first: it is taken where nothing can be measured, and in
            Triton's interpreter.
        family: From the kernel's arguments to the name of the family that suits them.
        key: Arguments that ask for a tuning of their own.
    """
    if triton.knobs.runtime.interpret:
        families = {name: configs[:1] for name, configs in families.items()}
    return lambda kernel: TunedFamilies(kernel, families, family, key)
