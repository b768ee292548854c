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


def autotune(
    families: Mapping[str, Sequence[triton.Config]], family: Callable[[Mapping[str, Any]], str], key: Sequence[str]
) -> Any:
    """``triton.autotune`` among one family of configurations, its choice remembered on disk.

    Args:
        families: Name to configurations; the first of all is what Triton's interpreter runs.
        family: From the kernel's arguments to the name of the family that suits them.
        key: Arguments that ask for a tuning of their own.
    """
    configs = [config for choices in families.values() for config in choices]
    if triton.knobs.runtime.interpret:
        configs = configs[:1]

    def prune(_configs: Sequence[triton.Config], arguments: Mapping[str, Any], **more: Any) -> list[triton.Config]:
        return list(families[family({**arguments, **more})])

    return triton.autotune(
        configs=configs, key=list(key), prune_configs_by={"early_config_prune": prune}, cache_results=True
    )
