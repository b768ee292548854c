"""What a number depends on: the machine, its versions and load, and the most that it gives."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

# Operations of an exponential without a unit for it: seven multiply-adds (range, polynomial of degree 5, scaling).
EXPONENTIAL_FLOPS = 14
PACKAGES = ("torch", "triton", "numpy", "scikit-image", "opencv-python-headless", "kornia")


@dataclass(frozen=True)
class Work:
    """The least that any implementation of one call must do.

    Args:
        bytes: Inputs read once and outputs written once.
        flops: A multiply-add counts as two, and so does an operation that may not be fused into one.
        exponentials: Of a softmax.
        dtype: What the arithmetic is in.
    """

    bytes: float
    flops: float = 0.0
    exponentials: float = 0.0
    dtype: str = "float32"


@dataclass(frozen=True)
class Ceilings:
    """What the device gives at most, measured by copying and by matrix products.

    Args:
        bytes_per_second: Of a copy in memory, reads and writes counted.
        flops_per_second: Of matrix products, by dtype.
        exponentials_per_second: Of the unit that makes them; 0 where there is none.
    """

    bytes_per_second: float
    flops_per_second: dict[str, float] = field(default_factory=dict)
    exponentials_per_second: float = 0.0

    def floor(self, work: Work) -> float:
        """Seconds that the work takes when memory and arithmetic run at their ceilings, one hidden behind the other."""
        rate, exponentials = self.flops_per_second[work.dtype], self.exponentials_per_second
        if exponentials:
            return max(work.bytes / self.bytes_per_second, work.flops / rate, work.exponentials / exponentials)
        return max(work.bytes / self.bytes_per_second, (work.flops + EXPONENTIAL_FLOPS * work.exponentials) / rate)


@cache
def ceilings(device: str) -> Ceilings:
    """Measure the ceilings of ``"cpu"`` or ``"cuda"``; takes a second."""
    cuda = device == "cuda"
    wait: Callable[[], object] = torch.cuda.synchronize if cuda else lambda: None

    def least(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(12):
            wait()
            start = time.perf_counter()
            run()
            wait()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    source = torch.ones(2**28 if cuda else 2**24, device=device)  # far beyond the caches
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size() / least(lambda: target.copy_(source))
    rates = {}
    dtypes = (torch.float32, torch.float64, torch.bfloat16) if cuda else (torch.float32, torch.float64)
    for dtype in dtypes:
        side = 8192 if cuda else 1024
        matrix = torch.ones(side, side, dtype=dtype, device=device)
        product = torch.empty_like(matrix)
        rates[str(dtype).removeprefix("torch.")] = (
            2
            * side**3
            / least(
                lambda matrix=matrix, product=product: torch.mm(matrix, matrix, out=product)  # type: ignore[misc]
            )
        )
    exponentials = 0.0
    if cuda:  # 16 for each multiprocessor and clock
        exponentials = 16.0 * torch.cuda.get_device_properties(device).multi_processor_count * _clock()
    return Ceilings(copied, rates, exponentials)


def _clock() -> float:
    """Highest clock of the GPU's multiprocessors in Hz; 0 where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) * 1e6
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return 0.0


def circumstances(device: str) -> dict[str, object]:
    """Commit, device, versions, threads, load, ceilings."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": f"{_cpu()} ({os.cpu_count()} cores)",
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "ceilings": asdict(ceilings(device)),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return run.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    facts = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.is_file() else {}
    name = next((value.strip() for key, value in facts.items() if key.startswith("model name")), platform.processor())
    flags = next((value.split() for key, value in facts.items() if key.startswith("flags")), [])
    widest = next((isa for isa in ("avx512f", "avx2") if isa in flags), "")
    return f"{name or platform.machine()}{', ' if widest else ''}{widest.removesuffix('f').upper()}"
