"""A CPU that stands in for a GPU, so that a dry run takes the paths of ``--device cuda``: it measures nothing.

"cuda" as a device means the CPU, Triton's kernels run in its interpreter, events read the host's clock, a graph's
replay does nothing, and the CPU's native kernels pass for CUDA's.
"""

import os
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

WITHOUT_CANNY = "FASTINPAINT_STAND_IN_WITHOUT_CANNY"  # set: as if the extension had no CUDA kernels
_kept: list[Any] = []


def install() -> None:
    """Replace what would ask for a device, for the rest of this process."""
    os.environ["TRITON_INTERPRET"] = "1"
    import_module("tests.kernels.conftest")  # mends the interpreter
    from fastinpaint.ops import _backend

    _backend._triton_gap = lambda *_: None  # type: ignore[assignment]
    if os.environ.get(WITHOUT_CANNY):
        _backend._native_gap = lambda op, _: f"the extension has no {op} for cuda tensors"  # type: ignore[assignment]
    properties = SimpleNamespace(multi_processor_count=132, L2_cache_size=50 * 2**20, total_memory=80 * 2**30)
    replacements = {
        "is_available": lambda: True,
        "Event": _Event,
        "Stream": _Stream,
        "stream": _nothing,
        "current_stream": _Stream,
        "CUDAGraph": _Graph,
        "graph": _nothing,
        "synchronize": _none,
        "empty_cache": _none,
        "reset_peak_memory_stats": _none,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "mem_get_info": lambda *_: (2**33, 2**33),
        "get_device_name": lambda *_: "a CPU that stands in",
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (9, 0),
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "_sleep": _none,
        "is_current_stream_capturing": lambda: False,
    }
    for name, replacement in replacements.items():
        if not hasattr(torch.cuda, name):  # so that a dry run sees a name that this torch lacks
            raise AttributeError(f"torch.cuda has no {name}")
        setattr(torch.cuda, name, replacement)
    for name in ("start", "stop"):
        if not hasattr(torch.cuda.profiler, name):
            raise AttributeError(f"torch.cuda.profiler has no {name}")
        setattr(torch.cuda.profiler, name, _none)
    torch.compiler.set_stance("force_eager")
    mode = _CudaIsTheCPU()
    mode.__enter__()
    _kept.append(mode)


def installed() -> bool:
    """Whether a CPU stands in."""
    return bool(getattr(sys.modules.get(__name__), "_kept", []))


def _none(*_: Any, **__: Any) -> None:
    return None


@contextmanager
def _nothing(*_: Any, **__: Any) -> Any:
    yield


class _CudaIsTheCPU(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        args = tuple(_on_cpu(value) for value in args)
        return func(*args, **{name: _on_cpu(value) for name, value in (kwargs or {}).items()})


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.split(":")[0] == "cuda" else value


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self, *_: Any) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "_Event") -> float:
        """Milliseconds."""
        return (end.seconds - self.seconds) * 1e3


class _Stream:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream = 0
        self.device = torch.device("cpu")

    def wait_stream(self, _: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Graph:
    def replay(self) -> None:
        pass
