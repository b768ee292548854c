"""What every launcher needs: the device of its tensors, and tuning."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

Blocks = Mapping[str, int]


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU current: Triton launches on the current device and its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


class TunedFamilies:
    """A kernel with several families of configurations, tuned within the one that suits its arguments.

    Each family has a tuner of its own: one with a single configuration never measures anything (Triton 3.6 would, were
    it told to prune a longer list).
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
        self.tuners = {
            name: triton.autotune(configs=list(configs), key=list(key), cache_results=True)(kernel)
            for name, configs in families.items()
        }

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        """The launcher for a grid; all arguments are positional."""
        return lambda *arguments: self.tuners[self.family(dict(zip(self.names, arguments, strict=False)))][grid](
            *arguments
        )


def autotune(
    families: Mapping[str, Sequence[triton.Config]], family: Callable[[Mapping[str, Any]], str], key: Sequence[str]
) -> Callable[[Any], TunedFamilies]:
    """``triton.autotune`` among one family of configurations, its choice remembered on disk.

    Args:
        families: Name to configurations; Triton's interpreter runs the first of all whatever the family.
        family: From the kernel's arguments to the name of the family that suits them.
        key: Arguments that ask for a tuning of their own.
    """
    if triton.knobs.runtime.interpret:
        first = next(iter(families.values()))[:1]
        families = dict.fromkeys(families, first)
    return lambda kernel: TunedFamilies(kernel, families, family, key)
